"""What is asked of a job in these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Refuse = Callable[..., str]
"""Runs a job's command line with these arguments added, sees that it is refused, gives the line."""


def arguments(sets: dict[str, Path], storage: Path) -> list[str]:
    return [
        *("demo", "--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}"),
        *("--data.test", f"t={sets['test']}", "--data.global_batch", "16", "--model.image_size", "32"),
        *("--run.storage", str(storage), "--run.name", "run", "--run.device", "cpu"),
    ]
