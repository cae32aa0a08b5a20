"""The summary of an evaluation as Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfdet.evaluation.report.markdown import text, write_markdown
from dfdet.evaluation.result import Result
from tests.dfdet.evaluation.report.made import scored


@pytest.fixture(scope="module")
def result(trained_run: Path, signal_sets: dict[str, Path]) -> Result:
    return scored(checkpoint=(str(trained_run),), test=(f"dfd={signal_sets['test']}",))


def rows_of(markdown: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]


def test_it_has_the_numbers_of_the_result(result: Result, tmp_path: Path) -> None:
    write_markdown(tmp_path / "report.md", result)
    rows = rows_of((tmp_path / "report.md").read_text())
    metrics = result.to_json()["metrics"]
    for level, units in (("video", "18"), ("frame", "72")):
        [row] = [row for row in rows if row[:3] == ["dfd", "run", units]]
        value, low, high = (metrics[f"test/dfd/{level}/auroc{end}"] for end in ("", "_low", "_high"))
        assert row[3] == f"{value:.4f} ({low:.3f} to {high:.3f})"
    share = 100 * metrics["test/dfd/video/auroc"]
    assert ["run", "this evaluation", f"{share:.2f}"] in rows
    assert ["full method, published", "arXiv 2503.19683", "98.00"] in rows


def test_every_table_is_even(result: Result, tmp_path: Path) -> None:
    write_markdown(tmp_path / "report.md", result)
    blocks = (tmp_path / "report.md").read_text().split("\n\n")
    tables = [rows_of(block) for block in blocks if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({len(row) for row in table}) == 1


def test_it_says_what_was_scored(result: Result, tmp_path: Path) -> None:
    write_markdown(tmp_path / "report.md", result)
    found = (tmp_path / "report.md").read_text()
    assert result.request.models[0].fingerprint in found
    assert result.request.tests["dfd"].digest in found


def test_markup_in_names_is_shown() -> None:
    assert text("a|b <img> *c*\n_d_") == r"a\|b &lt;img> \*c\* \_d\_"
