"""What the pictures of reports share: colours and layout, as Plotly figures in plain dicts.

Colours are of middle brightness, readable on white and on black, after Okabe and Ito. All text that comes
from outside is to be escaped: Plotly obeys some HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

BLUE, ORANGE, GREEN, GREY, RED = "#2b83c4", "#dd7a1c", "#1fa07a", "#8c8c8c", "#d1495b"
PURPLE, BROWN = "#9a6fd0", "#a5762b"

Figure = dict[str, Any]


def label_text(text: str) -> str:
    """Text as Plotly shows it, markup and all; it knows no entity for quotes."""
    return escape(text, quote=False)


def figure_of(data: list[Figure], height: int, x: Figure, y: Figure) -> Figure:
    """With the layout that all share; the page sets the text's colour."""
    axis = {"gridcolor": "rgba(128,128,128,.22)", "zeroline": False, "automargin": True}
    x, y = ({**axis, **one} for one in (x, y))
    for one in (x, y):
        if "title" in one:
            one["title"] = {"text": one["title"], "font": {"size": 12}, "standoff": 8}
    layout = {
        "height": height,
        "margin": {"l": 54, "r": 12, "t": 34, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
        "xaxis": x,
        "yaxis": y,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "hoverlabel": {"align": "left", "font": {"size": 12}},
    }
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def gapped(parts: Iterable[Sequence[Any]]) -> list[Any]:
    """All parts with a gap after each, so that one trace draws many lines."""
    return [item for part in parts for item in [*part, None]]
