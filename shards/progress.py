"""Progress of a long job on standard error: a bar on a terminal, a line each tenth elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

Progress = Callable[[int, int], None]
"""Called with the number done and the number of all."""


@contextmanager
def show_progress(what: str) -> Iterator[Progress]:
    """Gives the callback to call after each step; ``what`` names the things counted."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: _line(console, what, done, total)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(console: Console, what: str, done: int, total: int) -> None:
    if done == total or done * 10 // total > (done - 1) * 10 // total:
        console.print(f"{what}: {done} of {total}", soft_wrap=True, highlight=False, markup=False)
