"""SIGINT and SIGTERM of a training process: a checkpoint and an end, or an end at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Protocol

AGAIN_S = 2.0
"""A terminal and torchrun both pass a signal on: one that comes so soon is the same (seconds)."""


class Stoppable(Protocol):
    """What can be asked to stop."""

    stop: str | None


class Interrupts:
    """The signals received; before training they end the process, then they ask it to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first one received."""
        self._at = 0.0
        self._asked: Stoppable | None = None

    def install(self) -> None:
        """Takes the two signals over; in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def ask(self, context: Stoppable) -> None:
        """From now on a signal asks this context to stop."""
        self._asked = context

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            sys.exit(128 + number)
        if self.number is None:
            self.number, self._at = number, time.monotonic()
            self._asked.stop = signal.Signals(number).name
        elif time.monotonic() - self._at > AGAIN_S:
            os._exit(128 + number)
