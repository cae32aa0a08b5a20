"""The words and tables of a sweep's report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape

from dfdet.evaluation.seeds import Interval
from dfdet.html.page import Cell, code, folded, paragraph, section, table
from dfdet.sweep.finals import FinalRow, conclude, conclude_search, winner
from dfdet.sweep.report.cost import Cost, cost_of, saved_by_stopping
from dfdet.sweep.report.facts import Facts
from dfdet.sweep.report.parts import value_text
from dfdet.sweep.results import ENDED, Setting, score_text
from dfdet.sweep.status import duration_text

SHOWN_BEST = 10
"""Settings in the table that is not folded away."""
NONE = "-"


def title(facts: Facts) -> str:
    """The heading: name, recipe, what was searched for."""
    wanted = " and ".join(
        f"{'highest' if objective.direction == 'maximize' else 'lowest'} {metric}"
        for objective, metric in zip(facts.objectives, facts.metrics, strict=True)
    )
    recipe = facts.header["base"]["run"]["recipe"]
    space = facts.header.get("space", {}).get("dimensions", facts.dimensions)
    about = f"Recipe {recipe}, {len(space)} dimensions, searched for the {wanted}."
    return f"<h1>Sweep {escape(facts.folder.name)}</h1>\n{paragraph(about, 'muted')}"


def verdict(facts: Facts) -> str:
    """What came of it, in plain words, and how far it is."""
    best = winner(facts.rows)
    kind = "verdict better" if best and best.verdict == "better" else "verdict"
    lines = [paragraph(_conclusion(facts))]
    if len(facts.objectives) == 1 and facts.ranked:
        named = facts.setting(best.setting) if best else facts.ranked[0]
        values = ", ".join(f"{facts.names[path]} {_value(named, path)}" for path in named.params)
        lines.append(paragraph(f"{named.name}: {values or 'no values'}.", "muted"))
    if best and facts.count("running") + _unfinished(facts):
        lines.append(paragraph("Not finished: this may change.", "muted"))
    return f'<div class="{kind}">' + "".join(lines) + "</div>\n" + _counts(facts)


def _conclusion(facts: Facts) -> str:
    if len(facts.objectives) > 1:
        size, named = len(facts.front), ", ".join(_name(setting) for setting in facts.front[:6])
        if not size:
            return "No setting has completed yet."
        more = " and others" if size > 6 else ""
        return (
            f"{size} of {len(facts.ranked)} complete settings are beaten by no other: {named}{more}. There"
            " is no best one among them; these are single scores of the search, with its noise."
        )
    if facts.rows:
        return conclude(facts.rows, facts.metrics[0])
    return conclude_search(facts.trials, facts.directions[0], facts.metrics[0])


def _unfinished(facts: Facts) -> int:
    return sum(run.state not in ENDED for run in facts.last_runs)


def _counts(facts: Facts) -> str:
    saved = saved_by_stopping(facts.settings, facts.epochs, facts.seeds)
    limit = facts.header.get("options", {}).get("trials")
    items = [("settings" + (f" of {limit}" if limit else ""), str(len(facts.settings)))]
    items += [(word, str(facts.count(state))) for word, state in _STATES]
    if facts.last_runs:
        done = sum(run.state in ENDED for run in facts.last_runs)
        items.append(("last runs", f"{done}/{len(facts.last_runs)}"))
    items.append(("epochs trained", str(cost_of(facts.settings).epochs)))
    if saved.epochs:
        items.append(("epochs saved", f"{saved.epochs} ({saved.share:.0%})"))
    cells = "".join(f"<li><b>{escape(number)}</b>{escape(word)}</li>" for word, number in items)
    return f'<ul class="counts">{cells}</ul>'


_STATES = (
    ("complete", "complete"),
    ("stopped early", "pruned"),
    ("failed", "failed"),
    ("running", "running"),
)


def finals_table(facts: Facts) -> str:
    """Means on fresh seeds, differences to the published setting, verdicts."""
    head = ["setting", "mean", "95 % interval", "sd", "seeds", "difference", "95 % interval", "verdict"]
    kinds = ["word", *["number"] * 6, "word"]
    cells = [Cell(text, kind) for text, kind in zip(head, kinds, strict=True)]
    return table(cells, ((_row_kind(row.published), _final_cells(row)) for row in facts.rows))


def _final_cells(row: FinalRow) -> list[Cell]:
    kind = row.verdict if row.verdict in ("better", "worse") else ""
    lost = f", {row.seeds_missing} lost" if row.seeds_missing else ""
    return [
        Cell(f"{row.setting:04d}" + (f" ({row.published})" if row.published else ""), "word"),
        Cell(score_text(row.mean)),
        Cell(_interval(row.interval)),
        Cell(NONE if row.sd is None else score_text(row.sd)),
        Cell(f"{len(row.scores)}{lost}"),
        Cell(NONE if row.difference is None else score_text(row.difference, signed=True)),
        Cell(_interval(row.difference_interval, signed=True)),
        Cell(row.verdict, f"word {kind}".strip()),
    ]


def _interval(interval: Interval | None, signed: bool = False) -> str:
    return " to ".join(score_text(end, signed=signed) for end in interval) if interval else NONE


def settings_tables(facts: Facts) -> str:
    """The best settings with their values, and all of them below a fold."""
    others = [setting for setting in facts.settings if not setting.scores]
    everything = [*facts.ranked, *others]
    if not everything:
        return paragraph("No setting was begun yet.", "muted")
    best = _settings_table(facts, facts.ranked[:SHOWN_BEST]) if facts.ranked else ""
    rest = _settings_table(facts, everything, states=True)
    return best + folded(f"All {len(everything)} settings", rest)


def _settings_table(facts: Facts, settings: Sequence[Setting], states: bool = False) -> str:
    spread = any(setting.spread for setting in settings)
    head = [Cell("setting", "word"), *[Cell("state", "word")] * states]
    head += [Cell(metric) for metric in facts.metrics] + [Cell("sd over seeds")] * spread
    head += [Cell(facts.names[path]) for path in facts.dimensions] + [Cell("epochs")]
    rows = []
    for setting in settings:
        cells = [Cell(_name(setting), "word"), *[Cell(setting.state, "word")] * states]
        scores = list(map(score_text, setting.scores)) or [NONE] * len(facts.metrics)
        spreads = " / ".join(NONE if one is None else score_text(one) for one in setting.spread) or NONE
        values = [_value(setting, path) for path in facts.dimensions]
        cells += map(Cell, [*scores, *[spreads] * spread, *values, str(setting.epochs)])
        rows.append((_row_kind(setting.published), cells))
    return table(head, rows)


def _value(setting: Setting, path: str) -> str:
    return value_text(setting.params[path], 3) if path in setting.params else NONE


def _name(setting: Setting) -> str:
    return setting.name + (f" ({setting.published})" if setting.published else "")


def _row_kind(published: str | None) -> str:
    return "published" if published else ""


def cost_table(facts: Facts) -> str:
    """Epochs and worker time by what came of them, and what stopping saved."""
    rows = [(word, cost_of([s for s in facts.settings if s.state == state])) for word, state in _STATES]
    rows += [("last runs", cost_of(facts.last_runs))] if facts.last_runs else []
    rows = [(word, cost) for word, cost in rows if cost.settings]
    rows.append(("together", cost_of([*facts.settings, *facts.last_runs])))
    head = [Cell("", "word"), Cell("settings"), Cell("epochs"), Cell("worker time")]
    return table(head, (("", _cost_cells(word, cost)) for word, cost in rows)) + _saving(facts)


def _cost_cells(word: str, cost: Cost) -> list[Cell]:
    numbers = (f"{cost.settings}", f"{cost.epochs:,}", duration_text(cost.worker_s))
    return [Cell(word, "word"), *map(Cell, numbers)]


def _saving(facts: Facts) -> str:
    saved = saved_by_stopping(facts.settings, facts.epochs, facts.seeds)
    if not saved.epochs:
        return paragraph("Early stopping has saved nothing.", "muted")
    return paragraph(
        f"Early stopping saved {saved.epochs:,} epochs, {saved.share:.0%} of what the search would have"
        f" taken: about {duration_text(saved.worker_s)} of worker time, at the mean cost of an epoch here."
    )


def failures(facts: Facts) -> str:
    """Settings and last runs that failed, with their reasons; nothing where none did."""
    runs = [run for run in (*facts.settings, *facts.last_runs) if run.state == "failed"]
    if not runs:
        return ""
    head = [Cell("run", "word"), Cell("epochs"), Cell("reason", "long")]
    rows = (("", _failure_cells(run)) for run in runs)
    return section("Failed", table(head, rows))


def _failure_cells(run: Setting) -> list[Cell]:
    name = ", ".join(run.runs) or run.name
    return [Cell(name, "word"), Cell(str(run.epochs)), Cell(run.reason or "no reason was recorded", "long")]


def how_to_train(facts: Facts) -> str:
    """Commands that take the result further."""
    folder = shlex.quote(str(facts.folder))
    commands: list[str] = []
    if len(facts.objectives) == 1 and facts.ranked:
        commands.append(f"python ray_jobs/train.py --config {folder}/best.json")
    elif facts.front and facts.front[0].runs:
        run = shlex.quote(facts.front[0].runs[0])
        commands.append(f"python ray_jobs/train.py --config {folder}/{run}/config.json --run.name NAME")
    if not facts.header.get("options", {}).get("study"):
        commands.append(f"optuna-dashboard {folder}/study.journal")
    what = "Trains the best setting as a run of its own"
    if len(facts.objectives) > 1:
        what = "Trains a setting of the front again, here the first, under a new NAME"
    text = f"{what}; the dashboard shows the study itself." if facts.ranked else "The study itself:"
    return section("Use it", paragraph(text, "muted"), code("\n".join(commands))) if commands else ""


def definitions(facts: Facts) -> str:
    """The space, options and base config, folded."""
    head = [Cell("dimension", "word"), Cell("values", "word"), Cell("where", "word")]
    space = facts.header.get("space", {}).get("dimensions", {})
    rows = (("", _dimension_cells(path, dimension)) for path, dimension in space.items())
    texts = (
        (f"The space: {len(space)} dimensions", table(head, rows)),
        ("Options of the sweep", code(json.dumps(facts.header.get("options", {}), indent=2))),
        ("Base config", code(json.dumps(facts.header["base"], indent=2))),
    )
    return section("What was searched", *(folded(name, content) for name, content in texts))


def _dimension_cells(path: str, dimension: dict) -> list[Cell]:
    if dimension.get("choices") is not None:
        values = " | ".join(map(str, dimension["choices"]))
    else:
        values = f"{value_text(dimension.get('low'))} to {value_text(dimension.get('high'))}"
        values += ", log" * bool(dimension.get("log")) + ", whole" * bool(dimension.get("integer"))
        values += f", step {value_text(dimension['step'])}" if dimension.get("step") else ""
    where = " and ".join(
        f"{name} is {_either(allowed)}" for name, allowed in dimension.get("when", {}).items()
    )
    return [Cell(path, "word"), Cell(values, "word"), Cell(where or "always", "word")]


def _either(values: Iterable[object]) -> str:
    return " or ".join(map(str, values))
