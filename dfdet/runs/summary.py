"""A finished run on the terminal: its metrics, and where everything lies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {"auroc": "AUROC", "ap": "AP", "eer": "EER", "tpr_at_fpr_5e-2": "TPR at FPR 5 %"}


def show_result(result: dict[str, Any], result_json: Path | str) -> None:
    """Shows what ``result.json`` holds: a table, the test AUROCs, the best checkpoint."""
    console = Console(width=100) if not sys.stdout.isatty() else Console()
    metrics = result.get("metrics", {})
    console.print(_table(metrics))
    for name, value in metrics.items():
        if name.startswith("test/") and name.endswith("/video/auroc") and value is not None:
            console.print(f"{name} = {value:.4f}", highlight=False)
    sizes = result.get("checkpoint_bytes", {})
    parts = ", ".join(f"{k} {v / 1000:,.1f} kB" for k, v in sizes.items() if k.endswith(".safetensors"))
    best = f"best checkpoint: {result.get('best_checkpoint')} ({parts})"
    for line in (best, f"result: {result_json}"):
        console.print(line, soft_wrap=True, highlight=False)


def _table(metrics: dict[str, Any]) -> Table:
    rows: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        split, dataset, level, metric = name.split("/", 3)
        rows.setdefault(f"{split}/{dataset} {level}", {})[metric] = value
    table = Table("set", *COLUMNS.values())
    for name, found in rows.items():
        shown = (found.get(key) for key in COLUMNS)
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in shown))
    return table
