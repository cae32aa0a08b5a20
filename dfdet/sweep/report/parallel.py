"""The report's parallel coordinates: a line a setting through all dimensions to its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from dfdet.html.figure import GREY, Figure, figure_of, gapped, label_text
from dfdet.sweep.report.parts import Distributions, short_names, value_text
from dfdet.sweep.results import Direction, Setting, score_text

FIFTHS = {
    "worst fifth": "#a8bfd6",
    "4th fifth": "#7ba7d4",
    "3rd fifth": "#2b83c4",
    "2nd fifth": "#1fa07a",
    "best fifth": "#dd7a1c",
}
DORMANT = -0.14
"""Height of the lane of settings under which a dimension does not exist."""


def parallel(
    settings: Sequence[Setting], dists: Distributions, place: int, direction: Direction, metric: str
) -> Figure:
    """All settings through all dimensions; fifths of the complete ones by colour, stopped ones in grey."""
    best_first = direction == "maximize"
    complete = sorted((s for s in settings if s.scores), key=lambda s: s.scores[place], reverse=best_first)
    low, high = (f(s.scores[place] for s in complete) for f in (min, max))
    stopped = [s for s in settings if s.state == "pruned"]
    data = [_lines("stopped early", stopped, dists, GREY, 0.25, 1.0)]
    for fifth, (name, colour) in enumerate(FIFTHS.items()):
        below_best = len(FIFTHS) - 1 - fifth
        part = [s for rank, s in enumerate(complete) if rank * len(FIFTHS) // len(complete) == below_best]
        ends = [(s.scores[place] - low) / (high - low) if high > low else 0.5 for s in part]
        data.append(_lines(name, part, dists, colour, 0.7 + 0.07 * fifth, 1.2 + 0.35 * fifth, ends))
    notes = [note for column, dist in enumerate(dists.values()) for note in _axis_notes(column, dist)]
    notes += [_note(len(dists), height, score_text(value)) for height, value in ((0, low), (1, high))]
    if any(path not in s.params for s in [*complete, *stopped] for path in dists):
        notes.append(_note(-0.42, DORMANT, "not<br>used") | {"xshift": 0})
    names = short_names(dists)
    labels = [_broken(label_text(names[path])) for path in dists] + [_broken(label_text(metric), " ")]
    return _drawn(data, labels, notes)


def _lines(
    name: str,
    settings: Sequence[Setting],
    dists: Distributions,
    colour: str,
    opacity: float,
    width: float,
    ends: Sequence[float] = (),
) -> Figure:
    """Lines of some settings; ``ends`` are their heights on the last axis, which stopped ones lack."""
    heights = [
        [_height(s.params[path], dist) if path in s.params else DORMANT for path, dist in dists.items()]
        for s in settings
    ]
    if ends:
        heights = [[*one, end] for one, end in zip(heights, ends, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": gapped([range(len(one)) for one in heights]),
        "y": gapped(heights),
        "customdata": gapped([[s.number] * len(one) for s, one in zip(settings, heights, strict=True)]),
        "hoverinfo": "text",
        "line": {"color": colour, "width": width},
        "opacity": opacity,
    }


def _drawn(data: list[Figure], labels: list[str], notes: list[Figure]) -> Figure:
    x: Figure = {"tickvals": list(range(len(labels))), "ticktext": labels, "side": "top", "tickangle": 0}
    x |= {"range": [-0.45, len(labels) - 0.45], "fixedrange": True, "tickfont": {"size": 11}}
    y = {"range": [-0.24, 1.08], "visible": False, "fixedrange": True}
    figure = figure_of(data, 460, x, y)
    figure["layout"] |= {"annotations": notes, "hovermode": "closest"}
    figure["layout"]["legend"] |= {"y": 0, "yanchor": "top"}
    figure["layout"]["margin"] |= {"t": 44, "l": 8, "r": 8, "b": 30}
    return figure


def _height(value: Any, dist: Any) -> float:
    """Place of a value on its axis (0 to 1)."""
    if isinstance(dist, CategoricalDistribution):
        return (dist.choices.index(value) + 0.5) / len(dist.choices)
    low, high = (math.log(end) if dist.log else end for end in (dist.low, dist.high))
    at = math.log(value) if dist.log else value
    return (at - low) / (high - low) if high > low else 0.5


def _axis_notes(column: int, dist: Any) -> list[Figure]:
    if isinstance(dist, CategoricalDistribution):
        return [_note(column, _height(choice, dist), label_text(str(choice))) for choice in dist.choices]
    return [_note(column, height, value_text(float(end))) for height, end in ((0, dist.low), (1, dist.high))]


def _note(x: float, y: float, text: str) -> Figure:
    return {
        "x": x,
        "y": y,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "xshift": 3,
        "font": {"size": 10},
    }


def _broken(text: str, at: str = "_") -> str:
    """A long name on two lines."""
    if len(text) <= 11 or at not in text:
        return text
    places = [place + 1 for place, char in enumerate(text) if char == at]
    middle = min(places, key=lambda place: abs(place - len(text) / 2))
    return text[:middle] + "<br>" + text[middle:]
