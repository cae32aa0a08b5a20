"""Progress of a long job on standard error: a bar on a terminal, a line each tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

Progress = Callable[[int, int], None]
"""Called with the number done and the number of all."""

LINE_SECONDS = 60.0
"""Elsewhere than on a terminal, a line is due this often (seconds), and each tenth of the work."""


@contextmanager
def show_progress(what: str) -> Iterator[Progress]:
    """Gives the callback to call after each step; ``what`` names the things counted."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, what)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class _Lines:
    """A line each tenth, and each minute of slow work, with the rate of this run and the time left."""

    def __init__(self, console: Console, what: str) -> None:
        self.console, self.what = console, what
        self.begin = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done - 1
        tenth = done == total or done * 10 // total > (done - 1) * 10 // total
        if not tenth and now - self.last < LINE_SECONDS:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.begin, 1e-9)
        left = timedelta(seconds=round((total - done) / rate))
        line = f"{self.what}: {done} of {total}, {rate:.3g}/s" + (f", {left} left" if done < total else "")
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)
