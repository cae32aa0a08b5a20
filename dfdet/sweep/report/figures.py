"""The pictures of a sweep's report, as Plotly figures in plain dicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from dfdet.html.figure import BLUE, GREEN, GREY, ORANGE, RED, Figure, figure_of, gapped, label_text
from dfdet.sweep.finals import FinalRow
from dfdet.sweep.report.importances import Importances
from dfdet.sweep.report.parts import marks, short_names, value_text
from dfdet.sweep.results import Direction, Setting


def history(settings: Sequence[Setting], place: int, direction: Direction, metric: str) -> Figure:
    """Scores by number of the setting, and the best so far."""
    complete = [s for s in settings if s.scores]
    stopped = [s for s in settings if s.state == "pruned" and s.curve and not place]
    data = [
        marks("stopped early (last value)", stopped, _number, _last, GREY, "x-thin", 7),
        marks("complete", [s for s in complete if not s.published], _number, _score(place), BLUE),
        marks(
            "published", [s for s in complete if s.published], _number, _score(place), ORANGE, "diamond", 10
        ),
    ]
    scores = map(_score(place), complete)
    best = list(accumulate(scores, max if direction == "maximize" else min))
    end = [settings[-1].number] if complete else []
    line: Figure = {"type": "scatter", "mode": "lines", "name": "best so far", "hoverinfo": "skip"}
    line |= {"x": [s.number for s in complete] + end, "y": best + best[-1:]}
    data.append(line | {"line": {"color": GREEN, "width": 2, "shape": "hv"}})
    return figure_of(data, 340, {"title": "setting", **_whole(settings)}, {"title": label_text(metric)})


def importance_bars(found: Importances) -> Figure:
    """Shares of the dimensions, and what chance alone reaches."""
    names = short_names(found.shares)
    paths = list(reversed(found.shares))
    labels = [label_text(names[path]) for path in paths]
    told = [found.shares[path] > found.chance[path] for path in paths]
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "importance",
        "x": [found.shares[path] for path in paths],
        "y": labels,
        "marker": {"color": [BLUE if above else GREY for above in told], "opacity": 0.85},
        "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
    }
    by_chance = {
        "type": "scatter",
        "mode": "markers",
        "name": "chance alone (9 of 10 cases below)",
        "x": [min(found.chance[path], 1.0) for path in paths],
        "y": labels,
        "marker": {
            "symbol": "line-ns-open",
            "size": 16,
            "color": ORANGE,
            "line": {"width": 3, "color": ORANGE},
        },
        "hovertemplate": "%{y}: chance alone reaches %{x:.2f}<extra></extra>",
    }
    y = {"showgrid": False, "ticksuffix": " "}
    figure = figure_of([bars, by_chance], 110 + 26 * len(paths), {"title": "share", "range": [0, 1.03]}, y)
    figure["layout"]["hovermode"] = "closest"
    return figure


def slice_of(settings: Sequence[Setting], path: str, dist: BaseDistribution, place: int) -> Figure:
    """Scores along one dimension; settings that were stopped early as ticks at the bottom."""
    own = [s for s in settings if path in s.params]
    complete = [s for s in own if s.scores]
    scores = list(map(_score(place), complete))
    floor = min(scores) - 0.08 * ((max(scores) - min(scores)) or abs(min(scores)) or 1.0)
    words = isinstance(dist, CategoricalDistribution)

    def at(setting: Setting) -> Any:
        return label_text(str(setting.params[path])) if words else setting.params[path]

    stopped = [s for s in own if s.state == "pruned"]
    published = [s for s in complete if s.published]
    data = [
        marks("stopped early", stopped, at, lambda _: floor, GREY, "line-ns-open", 9),
        marks("complete", [s for s in complete if not s.published], at, _score(place), BLUE, size=7),
        marks("published", published, at, _score(place), ORANGE, "diamond", 9),
    ]
    figure = figure_of(data, 220, _categories(dist) if words else _numeric(dist), {})
    figure["layout"] |= {"showlegend": False}
    figure["layout"]["margin"] |= {"t": 10, "b": 34, "l": 44}
    return figure


CURVES = {
    "stopped early": (GREY, 0.6, 1.0),
    "failed or running": (RED, 0.7, 1.0),
    "complete": (BLUE, 0.7, 1.3),
    "published": (ORANGE, 1.0, 2.0),
    "best of the search": (GREEN, 1.0, 3.0),
}
"""Colour, opacity and width (pixels), the most telling on top."""


def curves(settings: Sequence[Setting], best: int | None, metric: str) -> Figure:
    """The first objective by epoch: what early stopping saw."""
    data = []
    for name, (colour, opacity, width) in CURVES.items():
        part = [s for s in settings if s.curve and _curve_name(s, best) == name]
        alone = all(len(s.curve) == 1 for s in part)
        trace: Figure = {"type": "scatter", "mode": "markers" if alone else "lines+markers", "name": name}
        trace |= {
            "x": gapped([list(s.curve) for s in part]),
            "y": gapped([list(s.curve.values()) for s in part]),
        }
        trace |= {"customdata": gapped([[s.number] * len(s.curve) for s in part]), "hoverinfo": "text+x+y"}
        trace |= {"line": {"color": colour, "width": width}, "marker": {"color": colour, "size": 4}}
        data.append(trace | {"opacity": opacity})
    last = max((epoch for s in settings for epoch in s.curve), default=0)
    return figure_of(data, 380, {"title": "epoch", **_steps(last)}, {"title": label_text(metric)})


def _curve_name(setting: Setting, best: int | None) -> str:
    if setting.number == best:
        return "best of the search"
    if setting.scores:
        return "published" if setting.published else "complete"
    return "stopped early" if setting.state == "pruned" else "failed or running"


def epoch_bars(settings: Sequence[Setting], budget: int) -> Figure:
    """Epochs that each setting was trained, against what a full training takes."""
    data = []
    for state, colour in (("complete", BLUE), ("pruned", GREY), ("failed", RED), ("running", GREEN)):
        part = [s for s in settings if s.state == state]
        name = "stopped early" if state == "pruned" else state
        bars: Figure = {"type": "bar", "name": name, "marker": {"color": colour}, "hoverinfo": "text"}
        bars |= {"x": [s.number for s in part], "y": [s.epochs for s in part], "textposition": "none"}
        data.append(bars | {"customdata": [s.number for s in part]})
    y = {"title": "epochs", "rangemode": "tozero"}
    figure = figure_of(data, 240, {"title": "setting", **_whole(settings)}, y)
    line: Figure = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": budget, "y1": budget}
    line |= {"line": {"color": GREY, "width": 1, "dash": "dot"}}
    figure["layout"] |= {"bargap": 0.25, "shapes": [line]}
    return figure


def front(settings: Sequence[Setting], best: Sequence[Setting], metrics: Sequence[str], place: int) -> Figure:
    """The first objective against another, and the Pareto front."""
    members = {s.number for s in best}
    inside = [s for s in settings if s.number in members]
    outside = [s for s in settings if s.scores and s.number not in members]
    groups = (
        ("other", [s for s in outside if not s.published], GREY, "circle", 7),
        ("published", [s for s in outside if s.published], ORANGE, "diamond", 10),
        ("Pareto front", [s for s in inside if not s.published], GREEN, "circle", 10),
        ("front and published", [s for s in inside if s.published], GREEN, "diamond", 12),
    )
    data = [
        marks(name, part, _score(0), _score(place), colour, symbol, size)
        for name, part, colour, symbol, size in groups
    ]
    return figure_of(data, 400, {"title": label_text(metrics[0])}, {"title": label_text(metrics[place])})


def finals(rows: Sequence[FinalRow], labels: Mapping[int, str], metric: str) -> Figure:
    """Mean and interval of each setting on fresh seeds, and every seed's score."""
    rows = list(reversed(rows))
    names = [label_text(labels[row.setting]) for row in rows]
    each = {
        "type": "scatter",
        "mode": "markers",
        "name": "one seed",
        "x": [score for row in rows for score in row.scores.values()],
        "y": [name for row, name in zip(rows, names, strict=True) for _ in row.scores],
        "text": [f"seed {seed}" for row in rows for seed in row.scores],
        "hoverinfo": "text+x",
        "marker": {"color": GREY, "size": 8, "opacity": 0.7, "symbol": "circle-open"},
    }
    means = {
        "type": "scatter",
        "mode": "markers",
        "name": "mean, 95 % interval",
        "x": [row.mean for row in rows],
        "y": names,
        "error_x": {
            "type": "data",
            "array": [row.interval[1] - row.mean if row.interval else 0 for row in rows],
            "color": GREY,
            "thickness": 1.5,
        },
        "hoverinfo": "x+y",
        "marker": {
            "color": [ORANGE if row.published else BLUE for row in rows],
            "size": 11,
            "symbol": "diamond",
        },
    }
    y = {"showgrid": False, "type": "category", "ticksuffix": " "}
    figure = figure_of([each, means], 120 + 34 * len(rows), {"title": label_text(metric)}, y)
    figure["layout"]["hovermode"] = "closest"
    return figure


def _number(setting: Setting) -> int:
    return setting.number


def _score(place: int) -> Callable[[Setting], float]:
    return lambda setting: setting.scores[place]


def _last(setting: Setting) -> float:
    return setting.curve[max(setting.curve)]


def _whole(settings: Sequence[Setting]) -> Figure:
    """An axis of the settings' numbers: no halves where there are few."""
    last = max((s.number for s in settings), default=0)
    return {"range": [-0.7, last + 0.7], **_steps(last)}


def _steps(last: int) -> Figure:
    return {"tickformat": "d"} | ({"dtick": 1} if last <= 12 else {})


def _categories(dist: Any) -> Figure:
    names = [label_text(str(choice)) for choice in dist.choices]
    order: Figure = {"categoryorder": "array", "categoryarray": names}
    return order | {"type": "category", "range": [-0.5, len(names) - 0.5]}


def _numeric(dist: Any) -> Figure:
    if not dist.log:
        pad = 0.04 * (dist.high - dist.low) or 0.5
        return {"range": [dist.low - pad, dist.high + pad]}
    ends = [math.log10(dist.low), math.log10(dist.high)]
    pad = 0.04 * (ends[1] - ends[0]) or 0.5
    ticks = _log_ticks(dist.low, dist.high)
    axis: Figure = {"type": "log", "range": [ends[0] - pad, ends[1] + pad]}
    return axis | {"tickvals": ticks, "ticktext": [value_text(tick) for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where the range is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0, 2.0, 5.0) if high <= 100 * low else (1.0,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]
