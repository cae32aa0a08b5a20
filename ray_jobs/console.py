"""A sweep on the terminal, for hours: a table that is kept up to date, or a plain line now and then."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import AbstractContextManager
from datetime import datetime

from rich.console import Console as Terminal
from rich.live import Live

from dfdet.sweep import status
from dfdet.sweep.outcome import write_outcome
from dfdet.sweep.status import Status
from dfdet.sweep.sweeper import Sweeper

logger = logging.getLogger(__name__)

POLL_S = 1.0
LINE_S = 30.0
"""A line comes at least so often, and whenever a setting has ended."""
OUTCOME_S = 60.0
"""The report is written at most so often (seconds)."""


class Console(AbstractContextManager["Console"]):
    """A thread that shows the sweep until the block ends, and keeps its report and tables fresh.

    Args:
        sweeper: What to show.
        concurrent: Settings side by side.
    """

    def __init__(self, sweeper: Sweeper, concurrent: int) -> None:
        self.sweeper, self.concurrent = sweeper, concurrent
        self.terminal = Terminal(file=sys.stdout, highlight=False)
        self._live = Live(console=self.terminal, auto_refresh=False) if self.terminal.is_terminal else None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sweep-console", daemon=True)
        self._said_s, self._written_s = -LINE_S, time.monotonic()
        self._ended = 0

    def __enter__(self) -> Console:
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def _follow(self) -> None:
        while not self._done.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            found = self.status()
            if self._live:
                self._live.update(status.table(found), refresh=True)
            else:
                self._say(found)
            self._write(found)
        except Exception as error:  # noqa: BLE001 - a picture that fails must not end a sweep
            logger.warning("the sweep cannot be shown just now: %s", error)

    def status(self) -> Status:
        """Of the search; of the last runs once there are any."""
        sweeper = self.sweeper
        last = sweeper.final.trials()
        return status.summarize(
            last or sweeper.search.trials(),
            len(last) or sweeper.options.trials,
            [objective.direction for objective in sweeper.objectives],
            sweeper.base.optim.epochs,
            datetime.now(),
            self.concurrent,
        )

    def _say(self, found: Status) -> None:
        now = time.monotonic()
        if found.ended != self._ended or now - self._said_s >= LINE_S:
            self._said_s = now
            print(status.line(found), flush=True)

    def _write(self, found: Status) -> None:
        now = time.monotonic()
        if found.ended != self._ended and now - self._written_s >= OUTCOME_S:
            write_outcome(self.sweeper)
            self._written_s = time.monotonic()
        self._ended = found.ended
