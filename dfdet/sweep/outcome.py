"""What a sweep has found so far, written into its folder: best.json, trials.csv, report.html."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfdet.sweep import finals, results
from dfdet.sweep.report.write import write_report
from dfdet.sweep.sweeper import Sweeper


@dataclass(frozen=True)
class Outcome:
    """What there is to say at the end."""

    best: Path | None
    """``best.json``; None while no setting is complete, and of several objectives."""
    verdict: str
    report: Path


def write_outcome(sweeper: Sweeper) -> Outcome:
    """Writes what there is; again after each change, whole each time.

    Raises:
        OSError: The folder cannot be written.
    """
    folder, objectives = sweeper.folder, sweeper.objectives
    trials, last = sweeper.search.trials(), sweeper.final.trials()
    directions = [objective.direction for objective in objectives]
    results.write_trials(folder, trials, [objective.metric for objective in objectives])
    report = write_report(folder, sweeper.search.study, sweeper.final.study, sweeper.header)
    ranked = results.best_first(results.read_settings(trials), directions) if len(directions) == 1 else []
    if not ranked:
        return Outcome(None, "", report)
    rows = finals.compare(last, directions[0], finals.choose_baseline(trials, directions[0]))
    winner = finals.winner(rows)
    values = {setting.number: setting.values for setting in ranked}
    number = winner.setting if winner else ranked[0].number
    best = results.write_best(folder, results.best_config(sweeper.base, values[number]))
    metric = objectives[0].metric
    said = finals.conclude(rows, metric) if rows else finals.conclude_search(trials, directions[0], metric)
    return Outcome(best, said, report)
