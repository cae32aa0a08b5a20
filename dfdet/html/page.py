"""The HTML of a report: tables, places of pictures, and a page that asks nothing of any network.

The page's content security policy forbids every request, and every script but the two whose checksums it
names: what names or messages may hold does not run, even where they were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from plotly.offline import get_plotlyjs

from dfdet.runs.atomic import to_json

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="hover">{hover}</script>
<noscript><p>The pictures need JavaScript; the tables do not.</p></noscript>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""
POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:;"
    " base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Cell:
    """A table's cell."""

    text: str
    kind: str = "number"
    """Its CSS classes: number, word, long."""
    note: str = ""
    """A smaller line below."""


def page(title: str, sections: Iterable[str], hover: Mapping[str, str] | None = None) -> str:
    """The whole file.

    Args:
        title: Plain text.
        sections: HTML.
        hover: What pictures show for each number in their ``customdata``, escaped.
    """
    plotly, script = get_plotlyjs(), _own("page.js")
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (plotly, script))
    return PAGE.format(
        policy=POLICY.format(hashes=hashes),
        title=escape(title),
        style=_own("page.css"),
        body="\n".join(section for section in sections if section),
        hover=_data(hover or {}),
        plotly=plotly,
        script=script,
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *(part for part in parts if part)])


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """A table of escaped cells; a row is its CSS class and its cells."""
    heads = "".join(f'<th class="{cell.kind}">{_breakable(cell.text)}</th>' for cell in head)
    body = "\n".join(
        f'<tr class="{kind}">' + "".join(map(_data_cell, cells)) + "</tr>" for kind, cells in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _data_cell(cell: Cell) -> str:
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td class="{cell.kind}">{escape(cell.text)}{note}</td>'


def _breakable(text: str) -> str:
    """Escaped; a long name may break after an underscore or a dot."""
    return re.sub(r"(?<=[_.])(?=\w)", "<wbr>", escape(text))


def grid(boxes: Iterable[tuple[str, str]]) -> str:
    """Small pictures beside each other: a heading and HTML each."""
    cells = "".join(f"<div><h3>{escape(title)}</h3>{content}</div>" for title, content in boxes)
    return f'<div class="grid">{cells}</div>'


def folded(title: str, content: str, *, opened: bool = False) -> str:
    """Content that a click shows, or hides where it is opened; pictures in it are drawn when it is open."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>\n{content}\n</details>"


def code(text: str) -> str:
    """Text to copy."""
    return f"<pre>{escape(text)}</pre>"


def plot(figure: dict[str, Any], min_width_px: int = 0) -> str:
    """The place of a picture; one wider than the screen can be scrolled."""
    place = f'<div class="plot" style="min-width:{min_width_px}px"></div>'
    return f'<div class="wide">{place}<script type="application/json">{_data(figure)}</script></div>'


def _data(obj: Any) -> str:
    """JSON that ends no script element."""
    return to_json(obj).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
