"""Trying again while a storage is full or away, instead of ending a run of days."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dfdet.errors import TrainingError
from dfdet.hang.progress import PROGRESS

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
WARN_EVERY_S = 60.0


class Warner:
    """A warning at most once a minute."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = float("-inf")

    def warn(self, message: str, *values: object) -> None:
        """Logs it, unless one was logged a short while ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + WARN_EVERY_S
            self._log.warning(message, *values)


def cause(error: OSError) -> str:
    """An error of the system in its own words, without its number and path."""
    return error.strerror or str(error) or type(error).__name__


def patiently(work: Callable[[], T], what: str, patience_s: float, hurry: threading.Event | None = None) -> T:
    """Does work that a storage may refuse, again and again with growing pauses.

    Args:
        work: Leaves nothing behind where it raises ``OSError``.
        what: What is written, with its path; begins the messages.
        patience_s: How long it is tried (seconds); 0 is once.
        hurry: Set by another thread that cannot wait: the next refusal is the last.

    Raises:
        TrainingError: The storage was full or away for longer.
    """
    began, pause, warner = time.monotonic(), FIRST_PAUSE_S, Warner(logger)
    hurry = hurry or threading.Event()
    while True:
        try:
            return work()
        except OSError as error:
            waited = time.monotonic() - began
            if waited >= patience_s or hurry.is_set():
                tried = f", for {waited:.0f} s" if patience_s else ""
                raise TrainingError(
                    f"{what}: cannot be written ({cause(error)}{tried}); make room or"
                    " repair the storage and start the run again under its name: what was written before"
                    " is intact"
                ) from error
            warner.warn("%s: cannot be written (%s); trying again for %.0f s", what, cause(error), patience_s)
            PROGRESS.alive()
            hurry.wait(min(pause, patience_s - waited))
            pause = min(2 * pause, LONGEST_PAUSE_S)
