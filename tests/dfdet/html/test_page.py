"""Parts of pages."""

from __future__ import annotations

from pathlib import Path

from dfdet.html.figure import figure_of
from dfdet.html.page import Cell, folded, grid, page, plot, table
from tests.dfdet.html.parsed import Page

EVIL = "</script><img src=x onerror=alert(1)>"


def made(folder: Path, *sections: str) -> Page:
    (folder / "page.html").write_text(page(EVIL, sections), encoding="utf-8")
    return Page(folder / "page.html")


def test_all_text_is_escaped(tmp_path: Path) -> None:
    cells = table([Cell(EVIL)], [("", [Cell(EVIL, note=EVIL)])])
    found = made(tmp_path, cells, grid([(EVIL, "<p>x</p>")]), folded(EVIL, ""))
    assert found.text.count(EVIL) == 6
    assert (found.links, found.handlers, len(found.scripts)) == ([], [], 2)


def test_a_note_stands_below_a_cell(tmp_path: Path) -> None:
    found = made(tmp_path, table([Cell("AUROC")], [("", [Cell("0.9", note="0.8 to 1.0")])]))
    assert found.rows == [["AUROC"], ["0.9"]]
    assert "<small>0.8 to 1.0</small>" in found.html


def test_what_is_folded_can_be_opened_at_first() -> None:
    assert folded("a", "b", opened=True).startswith("<details open>")
    assert folded("a", "b").startswith("<details>")


def test_a_picture_ends_no_script(tmp_path: Path) -> None:
    data = [{"type": "scatter", "x": [1], "y": [1], "name": EVIL}, {"type": "scatter", "x": [], "y": []}]
    found = made(tmp_path, plot(figure_of(data, 100, {}, {})))
    [figure] = found.figures
    assert [trace["name"] for trace in figure["data"]] == [EVIL]  # and traces without points are left out
