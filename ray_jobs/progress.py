"""Progress of a run as its folder tells it: a bar on a terminal, lines in a job's log."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.5


class Follower(AbstractContextManager["Follower"]):
    """A thread that follows logs (lines) or ``metrics.jsonl`` (bar) until the block ends."""

    def __init__(self, logs: Sequence[Path], metrics: Path) -> None:
        self.console = Console(file=sys.stdout, highlight=False)
        self.bar = self.console.is_terminal
        self.logs = [Tail(log, from_end=True) for log in logs]
        self.metrics = Tail(metrics, from_end=False)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.bar,
        )

    def __enter__(self) -> Follower:
        self.progress.start()
        self.task = self.progress.add_task("starting workers", total=None, note="")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.progress.stop()

    def _follow(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._show()
        self._show()

    def _show(self) -> None:
        for line in [line for log in self.logs for line in log.lines()]:
            if not self.bar:
                print(line, flush=True)
            elif "  step " not in line and " I step " not in line:
                self.progress.print(line)
        for line in self.metrics.lines():
            self._update(_record(line))

    def _update(self, record: dict[str, Any]) -> None:
        if "steps" in record:
            note = f"loss {record['train/loss/total'] or 0:.3f}  {record['perf/images_per_s']:.0f} images/s"
            self.progress.update(
                self.task, description="training", total=record["steps"], completed=record["step"], note=note
            )


class Tail:
    """New whole lines of a growing file; a file that was replaced by a shorter one is read again."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self.path = path
        self.offset = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        """What has been added since the last call, up to the last newline."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.offset += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").splitlines()


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
