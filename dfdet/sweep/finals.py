"""The last runs of a sweep: its best settings beside the published ones, on fresh seeds.

The best of many noisy scores is too high by the noise (the winner's curse), so no score of the search
names a winner. The settings are trained again on seeds that the search never saw, the same for all, and
compared seed by seed with the published setting: what a seed does to all settings cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from dfdet.evaluation.seeds import CONFIDENCE, Interval, t_interval
from dfdet.sweep.results import Direction, best_first, metric_text, read_settings, score_text

Verdict = Literal["baseline", "better", "worse", "no difference shown", "too few seeds", "no baseline"]


@dataclass(frozen=True)
class FinalRow:
    """A setting on fresh seeds, and against the published baseline."""

    setting: int
    """Number of the trial in the search."""
    published: str | None
    scores: dict[int, float]
    """Score by seed."""
    mean: float
    sd: float | None
    """Standard deviation over seeds; None of one seed."""
    interval: Interval | None
    """Of the mean (95 %); None of one seed."""
    seeds_missing: int
    """Seeds that other settings finished and this one did not (seeds)."""
    pairs: int
    """Seeds that both this setting and the baseline finished (seeds)."""
    difference: float | None
    """Mean over these seeds of its score less the baseline's."""
    difference_interval: Interval | None
    """Of the difference; those of all rows hold together (95 %)."""
    verdict: Verdict


def choose(search: Iterable[FrozenTrial], k: int, direction: Direction) -> list[int]:
    """Which settings are trained again: the best k, and the published one to compare them with."""
    settings = list(search)
    best = [setting.number for setting in best_first(read_settings(settings), (direction,))[:k]]
    baseline = choose_baseline(settings, direction)
    return best if baseline is None or baseline in best else [*best, baseline]


def choose_baseline(search: Iterable[FrozenTrial], direction: Direction) -> int | None:
    """The published setting that the others must beat: the one that did best in the search.

    The search's scores choose it, so that the fresh seeds compare with a setting fixed before them.
    """
    ranked = best_first(read_settings(search), (direction,))
    return next((setting.number for setting in ranked if setting.published), None)


def compare(final: Iterable[FrozenTrial], direction: Direction, baseline: int | None) -> list[FinalRow]:
    """The settings on fresh seeds, best mean first; those that lost a seed to a failure come last.

    Intervals are Student's over seeds. A difference is taken seed by seed; its interval is widened
    by Bonferroni for the number of settings compared, for the best of them is looked at.

    Args:
        final: Trials of the final study, with ``setting`` and ``seed`` in their attributes.
        direction: Whether more or less is better.
        baseline: Number of the setting compared with; None: no published setting completed.
    """
    published, scores = _by_setting(final)
    reference = _Reference(baseline, scores.get(-1 if baseline is None else baseline, {}), direction)
    compared = sum(len(reference.pairs(found)) > 1 for s, found in scores.items() if s != baseline)
    seeds = {seed for found in scores.values() for seed in found}
    rows = [
        _row(setting, published[setting], found, len(seeds - found.keys()), reference, max(1, compared))
        for setting, found in scores.items()
    ]
    sign = -1 if direction == "maximize" else 1
    return sorted(rows, key=lambda r: (r.seeds_missing, sign * r.mean, r.published is None, r.setting))


def winner(rows: Sequence[FinalRow]) -> FinalRow | None:
    """The best mean over all seeds; of equal ones the published. Its verdict says if it is shown better."""
    return rows[0] if rows else None


def conclude(rows: Sequence[FinalRow], metric: str) -> str:
    """What the last runs say, in a sentence or two.

    Args:
        rows: As :func:`compare` gives them.
        metric: What was compared, as in ``result.json`` or in words.
    """
    best, base = winner(rows), next((row for row in rows if row.verdict == "baseline"), None)
    if best is None:
        return "No last run has completed yet: nothing is named best."
    mean = f"{metric_text(metric)} {score_text(best.mean)} on average over {_seeds(len(best.scores))}"
    if best.verdict == "baseline":
        verdicts = [row.verdict for row in rows]
        shown = f"{verdicts.count('worse')} shown worse, {verdicts.count('better')} shown better"
        others = f"the others ({len(rows) - 1}): {shown}"
        return f"The published setting {_label(best)} stays best: {mean}; {others}."
    if base is None or best.difference is None:
        return f"Setting {_label(best)} is best: {mean}. No published setting completed to compare it with."
    against = f"against {score_text(base.mean)} of the published setting {_label(base)}"
    by = f"a difference of {score_text(best.difference, signed=True)}"
    if best.difference_interval is None:
        return (
            f"Setting {_label(best)} has the best mean: {mean}, {against}, {by}. One seed gives no interval,"
            " so nothing is shown: take more seeds (--final_seeds)."
        )
    low, high = (score_text(end, signed=True) for end in best.difference_interval)
    interval = f"{by} (95 % interval {low} to {high}, {best.pairs} paired seeds)"
    if best.verdict == "better":
        return f"Setting {_label(best)} is better than the published one: {mean}, {against}, {interval}."
    if best.verdict == "worse":  # the baseline lost seeds to failures, and its mean with them
        return (
            f"No setting finished more seeds with a better mean than {_label(best)}: {mean}; but on the seeds"
            f" of both it is worse than the published setting {_label(base)}, by {interval}."
        )
    return (
        f"No difference shown. Setting {_label(best)} has the best mean: {mean}, {against}, {interval},"
        " and that interval holds 0."
    )


def conclude_search(search: Iterable[FrozenTrial], direction: Direction, metric: str) -> str:
    """What the search alone says, which names no winner: the best of many noisy scores is too high."""
    trials = list(search)
    ranked = best_first(read_settings(trials), (direction,))
    if not ranked:
        return "No setting has completed yet."
    best, base = ranked[0], choose_baseline(trials, direction)
    name = best.name + (f" ({best.published})" if best.published else "")
    found = f"Best score of the search: setting {name}, {metric_text(metric)} {score_text(best.scores[0])}."
    doubt = "It was not trained again on fresh seeds, so no difference is shown."
    if len(ranked) > 1:
        doubt = f"It is the best of {len(ranked)} noisy scores, and too high by the noise. {doubt}"
    if base is None or base == best.number:
        return f"{found} {doubt}"
    other = next(setting for setting in ranked if setting.number == base)
    by = score_text(best.scores[0] - other.scores[0], signed=True)
    against = f"The best published setting, {other.name} ({other.published}), has"
    return f"{found} {against} {score_text(other.scores[0])}, a difference of {by}. {doubt}"


def _label(row: FinalRow) -> str:
    return f"{row.setting:04d}" + (f" ({row.published})" if row.published else "")


def _seeds(count: int) -> str:
    return "one fresh seed" if count == 1 else f"{count} fresh seeds"


@dataclass(frozen=True)
class _Reference:
    """The published baseline on fresh seeds; without scores where there is none."""

    setting: int | None
    scores: dict[int, float]
    direction: Direction

    def pairs(self, found: Mapping[int, float]) -> list[float]:
        return [score - self.scores[seed] for seed, score in sorted(found.items()) if seed in self.scores]

    def verdict(self, interval: Interval | None) -> Verdict:
        if not self.scores:
            return "no baseline"
        if interval is None:
            return "too few seeds"
        if interval[0] <= 0 <= interval[1]:
            return "no difference shown"
        return "better" if (interval[0] > 0) == (self.direction == "maximize") else "worse"


def _by_setting(final: Iterable[FrozenTrial]) -> tuple[dict[int, str | None], dict[int, dict[int, float]]]:
    """Published names and scores by seed of the settings that completed a last run."""
    published: dict[int, str | None] = {}
    scores: dict[int, dict[int, float]] = {}
    for trial in final:
        if trial.state == TrialState.COMPLETE:
            setting = trial.user_attrs["setting"]
            published[setting] = trial.user_attrs.get("published")
            scores.setdefault(setting, {})[trial.user_attrs["seed"]] = trial.values[0]
    return published, scores


def _row(
    setting: int,
    published: str | None,
    found: dict[int, float],
    seeds_missing: int,
    reference: _Reference,
    compared: int,
) -> FinalRow:
    values = list(found.values())
    is_baseline = setting == reference.setting
    pairs = [] if is_baseline else reference.pairs(found)
    together = t_interval(pairs, 1 - (1 - CONFIDENCE) / compared)
    return FinalRow(
        setting=setting,
        published=published,
        scores=found,
        mean=fmean(values),
        sd=stdev(values) if len(values) > 1 else None,
        interval=t_interval(values),
        seeds_missing=seeds_missing,
        pairs=len(pairs),
        difference=fmean(pairs) if pairs else None,
        difference_interval=together,
        verdict="baseline" if is_baseline else reference.verdict(together),
    )
