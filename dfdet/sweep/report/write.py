"""``report.html``: what a sweep searched and found, in one file that is kept and needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from optuna import Study

from dfdet import __version__
from dfdet.html.page import grid, page, paragraph, plot, section
from dfdet.runs.atomic import write_bytes_atomic
from dfdet.sweep.report import figures, tables
from dfdet.sweep.report.facts import Facts, read_facts
from dfdet.sweep.report.importances import BEST_SHARE, importances
from dfdet.sweep.report.parallel import parallel
from dfdet.sweep.report.parts import hover_text

AXIS_PX = 82
"""Room of an axis of the parallel coordinates (pixels)."""
FEWEST_LINES = 2
"""Complete settings from which on pictures of their values tell something."""


def write_report(folder: Path, study: Study, final: Study, header: Mapping[str, Any]) -> Path:
    """Writes ``report.html``, whole, whatever the sweep has come to.

    Args:
        folder: Of the sweep.
        study: Of the search.
        final: Of the last runs; may be empty.
        header: Of the study: ``base``, ``space``, ``options`` and ``objectives`` as JSON.

    Returns:
        The page.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / "report.html"
    facts = read_facts(folder, study, final, header)
    hover = {str(setting.number): hover_text(setting) for setting in facts.settings}
    write_bytes_atomic(path, page(f"Sweep {folder.name}", _sections(facts), hover).encode())
    return path


def _sections(facts: Facts) -> list[str]:
    return [
        tables.title(facts),
        tables.verdict(facts),
        _finals(facts),
        section("Settings", tables.settings_tables(facts)),
        _front(facts),
        _history(facts),
        _importances(facts),
        _parallel(facts),
        _slices(facts),
        _curves(facts),
        _cost(facts),
        tables.failures(facts),
        tables.how_to_train(facts),
        tables.definitions(facts),
        f"<footer>Written by dfdet {escape(__version__)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>",
    ]


def _finals(facts: Facts) -> str:
    if not facts.rows:
        return ""
    compared = sum(row.difference_interval is not None for row in facts.rows)
    text = (
        "The best settings and the published ones, trained again on seeds that the search never saw."
        " Differences are to the baseline, seed by seed"
    )
    if compared > 1:
        text += f"; their intervals hold for all {compared} together (Bonferroni), so the best may be picked"
    labels = {
        row.setting: f"{row.setting:04d}" + (f" {row.published}" if row.published else "")
        for row in facts.rows
    }
    picture = plot(figures.finals(facts.rows, labels, facts.metrics[0]))
    return section("On fresh seeds", paragraph(f"{text}.", "muted"), tables.finals_table(facts), picture)


def _front(facts: Facts) -> str:
    if len(facts.objectives) == 1 or not facts.front:
        return ""
    pictures = [
        plot(figures.front(facts.settings, facts.front, facts.metrics, place))
        for place in range(1, len(facts.objectives))
    ]
    return section("Pareto front", *pictures)


def _history(facts: Facts) -> str:
    if not facts.ranked:
        return ""
    pictures = [
        plot(figures.history(facts.settings, place, objective.direction, facts.metrics[place]))
        for place, objective in enumerate(facts.objectives)
    ]
    return section("History", *pictures)


def _importances(facts: Facts) -> str:
    if not facts.settings:
        return ""
    text = (
        f"PED-ANOVA on {len(facts.ranked)} complete settings: how much the best {BEST_SHARE:.0%} differ from"
        " all in each dimension. A grey bar does not pass its orange mark: scores shuffled among the settings"
        " get as far. Settings that were stopped early are left out."
    )
    found = [importances(facts.study, place) for place in range(len(facts.metrics))]
    parts = [] if all(isinstance(one, str) for one in found) else [paragraph(text, "muted")]
    for one, metric in zip(found, facts.metrics, strict=True):
        parts.append(paragraph(f"{metric}:") if len(found) > 1 else "")
        told = paragraph(one, "muted") if isinstance(one, str) else plot(figures.importance_bars(one))
        parts.append(told)
    return section("Importance of the dimensions", *parts)


def _parallel(facts: Facts) -> str:
    if len(facts.ranked) < FEWEST_LINES or not facts.dimensions:
        return ""
    width = AXIS_PX * (len(facts.dimensions) + 1) + 40
    parts = []
    for place, objective in enumerate(facts.objectives):
        picture = parallel(facts.settings, facts.dimensions, place, objective.direction, facts.metrics[place])
        parts.append(plot(picture, width))
    text = "A line a setting; those stopped early end before the last axis."
    return section("Settings as lines", paragraph(text, "muted"), *parts)


def _slices(facts: Facts) -> str:
    if len(facts.ranked) < FEWEST_LINES:
        return ""
    what = facts.metrics[0] if len(facts.metrics) == 1 else "each objective"
    text = (
        f"Along each dimension: {what}. Orange diamonds are published settings, grey ticks at the bottom"
        " settings that were stopped early."
    )
    scored = {path for setting in facts.ranked for path in setting.params}
    parts = [paragraph(text, "muted")]
    for place, metric in enumerate(facts.metrics):
        boxes = [
            (path, plot(figures.slice_of(facts.settings, path, dist, place)))
            for path, dist in facts.dimensions.items()
            if path in scored
        ]
        parts += [paragraph(f"{metric}:") if len(facts.metrics) > 1 else "", grid(boxes)]
    return section("Slices", *parts)


def _curves(facts: Facts) -> str:
    if not any(setting.curve for setting in facts.settings):
        return ""
    best = facts.front[0].number if facts.front else None
    picture = plot(figures.curves(facts.settings, best, facts.metrics[0]))
    text = "What early stopping saw: the first seed's score after each epoch."
    return section("Learning curves", paragraph(text, "muted"), picture)


def _cost(facts: Facts) -> str:
    if not facts.settings:
        return ""
    bars = figures.epoch_bars(facts.settings, facts.epochs * facts.seeds)
    return section(
        "Cost", tables.cost_table(facts), plot(bars) if any(s.epochs for s in facts.settings) else ""
    )
