"""The end of an evaluation: tables of scores, thresholds, the result and the report are written."""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.opened import THRESHOLD
from dfdet.errors import TrainingError
from dfdet.evaluation.assemble import Scores, assemble
from dfdet.evaluation.folder import Folder
from dfdet.evaluation.report.markdown import write_markdown
from dfdet.evaluation.report.write import write_report
from dfdet.evaluation.request import Request
from dfdet.evaluation.result import ORIGIN_VAL, Result, find
from dfdet.evaluation.scorer import Part, Slice
from dfdet.runs.atomic import write_bytes_atomic

logger = logging.getLogger(__name__)

METRICS_CSV, COMPARISON_CSV = "metrics.csv", "comparison.csv"
COLUMNS = {"auroc": "AUROC", "ap": "AP", "eer": "EER", "balanced_accuracy": "balanced acc."}


def conclude(request: Request, folder: Folder) -> dict[str, Any]:
    """Makes the result of the parts, writes all of it, and gives what ``result.json`` holds."""

    def part_of(part: Slice) -> Part:
        if (found := folder.kept(part)) is None:
            raise TrainingError(
                f"{part.set_key}: batches {part.low} to {part.high} are lost; give --out {folder.path} again"
            )
        return found

    scores = assemble(request, part_of)
    result = find(request, scores)
    _write_scores(scores, folder)
    _keep_thresholds(result)
    rows = [{"checkpoint": each.model.label} | row for each in result.found for row in each.summary.table()]
    _write_csv(folder.path / METRICS_CSV, rows)
    _write_csv(folder.path / COMPARISON_CSV, [each.table_row() for each in result.compared])
    written = result.to_json()
    write_report(folder.path / "report.html", result)
    write_markdown(folder.path / "report.md", result)
    folder.write_result(written)  # last: a kill before it concludes again, from the parts
    folder.remove_parts()
    return written


def _write_scores(scores: Scores, folder: Folder) -> None:
    for split, by_label in (("val", scores.val), ("test", scores.tests)):
        for label, sets in by_label.items():
            for name, scored in sets.items():
                scored.write(folder.scores(label, f"{split}-{name}"))
    for label, corrupted in scores.corrupted.items():
        for name, by_corruption in corrupted.items():
            for how, scored in by_corruption.items():
                scored.write(folder.scores(label, f"test-{name}", how))


def _keep_thresholds(result: Result) -> None:
    """Beside our checkpoints, what was fitted for them; others keep theirs in the result."""
    for found in result.found:
        folder, fitted = found.model.folder, found.threshold
        if folder is None or fitted is None or found.origin != ORIGIN_VAL:
            continue
        try:
            checkpoint.add_json(folder, THRESHOLD, fitted.model_dump())
        except OSError as error:
            logger.warning("threshold not kept with %s (%s); it is in the result", folder, error)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes_atomic(path, text.getvalue().encode())


def show(result: dict[str, Any], folder: Path) -> None:
    """Prints the video-level metrics, and where everything lies."""
    console = Console(width=160) if not sys.stdout.isatty() else Console()
    table = Table()
    for head in ("checkpoint", "test set, videos", *COLUMNS.values()):
        table.add_column(head, no_wrap=True)
    for label, found in result["checkpoints"].items():
        metrics = found["metrics"]
        for name in [*result["request"]["test"], "pooled", "macro"]:
            prefix = f"test/{name}/video/"
            if f"{prefix}auroc" in metrics:
                table.add_row(label, name, *(_shown(metrics, prefix + key) for key in COLUMNS))
    console.print(table)
    for label, found in result["checkpoints"].items():
        fitted = found["threshold"]
        said = (
            "none"
            if not fitted
            else f"{fitted['threshold']:.4f} (set {fitted['set_name']}, {fitted['level']})"
        )
        line = f"{label}: threshold {said}, {found['threshold_origin']}"
        console.print(line, soft_wrap=True, highlight=False)
    for pair in result["comparison"]:
        if pair["auroc"] is not None:
            console.print(_difference(pair), soft_wrap=True, highlight=False)
    console.print(f"result: {folder}", soft_wrap=True, highlight=False)


def _difference(pair: dict[str, Any]) -> str:
    """Of two checkpoints' video AUROC on a set."""
    said = f"{pair['first']} less {pair['second']} on {pair['set']}: video AUROC {pair['auroc']:+.4f}"
    if pair["auroc_low"] is None:
        return said
    return f"{said} ({pair['auroc_low']:+.3f} to {pair['auroc_high']:+.3f}), p = {pair['auroc_p']:.2g}"


def _said(found: dict[str, Any]) -> str:
    """A checkpoint's threshold and where it is from."""
    fitted = found["threshold"]
    if not fitted:
        return "none: give --val NAME=SET.json to fit one"
    where = f"at the equal error rate of {fitted['set_name']} ({fitted['level']}s)"
    return f"{fitted['threshold']:.4f} {where}, {found['threshold_origin']}"


def _shown(metrics: dict[str, float | None], name: str) -> str:
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
