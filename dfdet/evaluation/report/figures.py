"""The pictures of an evaluation's report, as Plotly figures in plain dicts.

A checkpoint has one colour, dash and mark in all of them, and a key above them says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from dfdet.evaluation.calibration import Calibration
from dfdet.evaluation.report import curves
from dfdet.evaluation.report.curves import Ranked
from dfdet.evaluation.report.facts import Case
from dfdet.evaluation.report.robustness import Worsening
from dfdet.evaluation.result import Found
from dfdet.html.figure import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Figure,
    figure_of,
    label_text,
)

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, BROWN)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px")
MARKS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down")
_STROKES = {"solid": "", "dash": "9 4", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "14 4"} | {
    "longdashdot": "13 3 2 3",
    "2px,6px": "2 6",
}
FLOOR = 0.05
"""Share that an empty bin is drawn at on the logarithmic axis (per cent)."""
ROW_PX = 104
"""Height of a histogram (pixels)."""


def _line(place: int, width: float = 2.0) -> Figure:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "dash": DASHES[place % len(DASHES)],
        "width": width,
    }


def key(founds: Sequence[Found]) -> str:
    """Which colour and dash is which checkpoint, as HTML; nothing where there is one alone."""
    if len(founds) == 1:
        return ""
    items = []
    for place, found in enumerate(founds):
        line = _line(place)
        stroke = f'stroke="{line["color"]}" stroke-width="3" stroke-dasharray="{_STROKES[line["dash"]]}"'
        swatch = f'<svg width="42" height="8"><line x1="0" y1="4" x2="42" y2="4" {stroke}/></svg>'
        items.append(f"<li>{swatch} {escape(found.model.label)}</li>")
    return f'<ul class="key">{"".join(items)}</ul>'


def _small(data: list[Figure], x: Figure, y: Figure, height: int = 290) -> Figure:
    figure = figure_of(data, height, x, y)
    figure["layout"] |= {"showlegend": False, "hovermode": "closest"}
    figure["layout"]["margin"] |= {"t": 8, "r": 10}
    return figure


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _guide(x: Sequence[float], y: Sequence[float], name: str) -> Figure:
    line = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "name": name, "line": line} | {
        "hoverinfo": "name"
    }


def roc(cases: Sequence[Case], *, log: bool) -> Figure | None:
    """ROC curves of a set; with ``log`` the false alarm rate is logarithmic. None with one class only."""
    found = [(case, points) for case in cases if (points := curves.ranked(case.videos))]
    if not found:
        return None
    lowest = 0.7 / max(points.reals for _, points in found) if log else 0.0
    even = _rounded(np.geomspace(lowest, 1, 40)) if log else [0.0, 1.0]
    data = [_guide(even, even, "chance")]
    for case, points in found:
        first = int(np.sum(points.alarm_rate == 0)) - 1 if log else 0  # what is hit without any alarm
        x = _rounded(np.maximum(points.alarm_rate[first:], lowest))
        trace: Figure = {"type": "scatter", "mode": "lines", "name": label_text(case.label), "x": x}
        line = _line(case.place) | {"shape": "hv" if log else "linear"}
        trace |= {"y": _rounded(points.hit_rate[first:]), "line": line}
        data.append(trace | {"hovertemplate": "FPR %{x:.4g}, TPR %{y:.4g}"})
        if case.threshold is not None:
            data.append(_operating(case, lowest))
    axis: Figure = {"title": "false positive rate", "range": [-0.01, 1.01]}
    if log:
        axis |= {"type": "log", "range": [math.log10(lowest), 0.01], "dtick": 1}
    return _small(data, axis, {"title": "true positive rate", "range": [-0.01, 1.02]})


def _operating(case: Case, lowest: float) -> Figure:
    assert case.threshold is not None
    alarm, hit = curves.operating_point(case.videos, case.threshold)
    colour = COLOURS[case.place % len(COLOURS)]
    symbol = MARKS[case.place % len(MARKS)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{label_text(case.label)} at the threshold",
        "x": [max(alarm, lowest)],
        "y": [hit],
        "marker": {"color": colour, "size": 10, "symbol": symbol},
        "hovertemplate": f"FPR {alarm:.4g}, TPR %{{y:.4g}}",
    }


def precision_recall(cases: Sequence[Case]) -> Figure | None:
    """Precision by recall of the fakes; None with one class only."""
    found = [(case, points) for case in cases if (points := curves.ranked(case.videos))]
    if not found:
        return None
    data = [_guide([0, 1], [_prevalence(found[0][1])] * 2, "share of fakes")]
    for case, points in found:
        trace: Figure = {"type": "scatter", "mode": "lines", "name": label_text(case.label)}
        first = int(np.sum(points.hit_rate == 0)) if points.hit_rate[1] == 0 else 0  # no hit, no precision
        x, y = _rounded(points.hit_rate[first:]), _rounded(points.precision[first:])
        trace |= {"x": x, "y": y, "line": _line(case.place)}
        data.append(trace | {"hovertemplate": "recall %{x:.4g}, precision %{y:.4g}"})
    floor = max(0.0, min(min(trace["y"]) for trace in data) - 0.04)
    return _small(
        data, {"title": "recall", "range": [-0.01, 1.01]}, {"title": "precision", "range": [floor, 1.02]}
    )


def _prevalence(points: Ranked) -> float:
    return points.fakes / (points.fakes + points.reals)


def histograms(case: Case) -> Figure:
    """Scores of each method's videos over those of the reals, a row a method, and the threshold."""
    units = case.videos
    fake = units.label == 1
    kinds = [(units.methods[code], fake & (units.method == code)) for code in np.unique(units.method[fake])]
    kinds.sort(key=lambda kind: kind[0])
    kinds = kinds or [("no fakes", fake)]
    figure = _small([], {"title": "score", "range": [-0.01, 1.01]}, {}, 60 + ROW_PX * len(kinds))
    layout = figure["layout"]
    style = layout.pop("yaxis")
    colour = COLOURS[case.place % len(COLOURS)]
    notes, spans = [], _spans(len(kinds))
    for row, ((name, chosen), span) in enumerate(zip(kinds, spans, strict=True), start=1):
        suffix = "" if row == 1 else str(row)
        ticks = {"tickvals": [0.1, 1, 10, 100], "ticktext": ["0.1", "1", "10", "100 %"]}
        layout[f"yaxis{suffix}"] = (
            style | ticks | {"type": "log", "range": [math.log10(FLOOR), 2.05], "domain": list(span)}
        )
        if not fake.all():
            figure["data"].append(_steps(units.score[~fake], "real", GREY, suffix, filled=True))
        if chosen.any():
            figure["data"].append(_steps(units.score[chosen], label_text(name), colour, suffix))
        text = f"{label_text(name)} ({int(chosen.sum()):,})"
        place = {"x": 0, "xref": "paper", "y": span[1], "yref": "paper", "yanchor": "bottom"}
        notes.append({"text": text, "showarrow": False, "xanchor": "left", "font": {"size": 11}} | place)
    layout["xaxis"] |= {"anchor": "y" if len(kinds) == 1 else f"y{len(kinds)}"}
    layout["annotations"] = notes
    if case.threshold is not None:
        line = {"color": RED, "width": 1.5, "dash": "dash"}
        across = {"type": "line", "x0": case.threshold, "x1": case.threshold, "y0": 0, "y1": 1}
        layout["shapes"] = [across | {"yref": "paper", "line": line}]
    return figure


def _spans(rows: int) -> list[tuple[float, float]]:
    """Parts of the height, from the top, with room for a name above each."""
    part = 1 / rows
    return [(1 - part * (row + 1) + 0.06 * part, 1 - part * row - 0.2 * part) for row in range(rows)]


def _steps(scores: np.ndarray, name: str, colour: str, axis: str, filled: bool = False) -> Figure:
    share, edges = curves.shares(scores)
    heights = _rounded(np.maximum(share, FLOOR))
    trace: Figure = {"type": "scatter", "mode": "lines", "name": name, "yaxis": f"y{axis}"}
    trace |= {"x": _rounded(edges), "y": [*heights, heights[-1]], "hovertemplate": "%{x:.2f}: %{y:.3g} %"}
    fill = {"fill": "tozeroy", "fillcolor": "rgba(140,140,140,.3)"} if filled else {}
    return trace | fill | {"line": {"color": colour, "width": 1 if filled else 2, "shape": "hv"}}


def robustness(founds: Sequence[Found], curve: Worsening) -> Figure:
    """AUROC by the level at which a set was made worse, with intervals; the set as it is as a dashed line."""
    levels = [f"{level.value:g}" for level in curve.levels]
    data = []
    for place, found in enumerate(founds):
        estimates = [level.estimates[place] for level in curve.levels]
        values = [each.value for each in estimates]
        line = _line(place)
        if all(each.low is not None for each in estimates):
            bounds = [each.high for each in estimates] + [each.low for each in reversed(estimates)]
            band: Figure = {"type": "scatter", "mode": "lines", "x": levels + levels[::-1], "y": bounds}
            band |= {"fill": "toself", "fillcolor": _faint(line["color"], len(founds)), "line": {"width": 0}}
            data.append(band | {"hoverinfo": "skip", "name": "interval"})
        if (value := curve.clean[place].value) is not None:
            data.append(_guide([levels[0], levels[-1]], [value, value], "clean"))  # type: ignore[list-item]
            data[-1]["line"] |= {"color": line["color"], "dash": "dash"}
            open_mark = {"size": 7, "symbol": f"{MARKS[place % len(MARKS)]}-open", "color": line["color"]}
            data[-1] |= {"mode": "lines+markers", "marker": open_mark}
        trace: Figure = {"type": "scatter", "mode": "lines+markers", "x": levels, "y": values, "line": line}
        marker = {"size": 7, "symbol": MARKS[place % len(MARKS)], "color": line["color"]}
        trace |= {"name": label_text(found.model.label), "marker": marker}
        data.append(trace | {"hovertemplate": "%{x}: %{y:.4f}"})
    axis: Figure = {
        "title": curve.axis,
        "type": "category",
        "categoryorder": "array",
        "categoryarray": levels,
    }
    return _small(data, axis, {"title": "video AUROC"}, 250)


def _faint(colour: str, layers: int) -> str:
    """For one of some layers: many are fainter each."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{0.16 if layers <= 2 else 0.06})"


def reliability(case: Case, before: Calibration, after: Calibration) -> Figure:
    """What was said and what came true, before and after the temperature."""
    colour = COLOURS[case.place % len(COLOURS)]
    data = [_guide([0, 1], [0, 1], "as said")]
    for when, measured, symbol, dash in (
        ("before", before, "circle-open", "dot"),
        ("after", after, "circle", "solid"),
    ):
        table = measured.mass
        kept = [
            (said, true) for said, true in zip(table.confidence, table.fakes, strict=True) if said is not None
        ]
        trace: Figure = {"type": "scatter", "mode": "lines+markers", "x": _rounded(said for said, _ in kept)}
        trace |= {"y": [true for _, true in kept], "name": f"{when}: ECE {table.ece:.4f}"}
        trace |= {"text": [f"{count:,} videos" for count in table.counts if count]}
        trace |= {"marker": {"symbol": symbol, "size": 8, "color": colour}}
        trace |= {"line": {"color": colour if when == "after" else GREY, "dash": dash, "width": 1.6}}
        data.append(trace | {"hovertemplate": "said %{x:.3f}, true %{y:.3f}, %{text}"})
    figure = _small(
        data,
        {"title": "mean score", "range": [-0.03, 1.03]},
        {"title": "share of fakes", "range": [-0.03, 1.03]},
    )
    figure["layout"] |= {"showlegend": True}
    figure["layout"]["margin"] |= {"t": 34}
    data[0]["showlegend"] = False
    return figure
