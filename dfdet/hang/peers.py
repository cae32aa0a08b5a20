"""What the ranks of a group tell each other of themselves while they hang.

Through the store that torch's process group began with: it needs neither the group's collectives,
which hang, nor the run's storage, which may be what hangs. A thread of its own talks to it: a call
waits for ever where the store's process is stopped.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from dfdet.hang.verdict import Report, left

logger = logging.getLogger(__name__)

ASKED, ENDING, TOLD = "asked", "ending", "told"


class Peers:
    """Answers when any rank asks how far all are, and asks.

    Args:
        connect: Gives a connection to the store that no other thread uses.
        rank: This one.
        world: Number of ranks.
        poll_s: Between looks at the store (seconds).
        report: Says where this rank is.
        on_end: Called once, when any rank has found a hang.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: int,
        world: int,
        poll_s: float,
        report: Callable[[], Report],
        on_end: Callable[[], None],
    ) -> None:
        self._connect, self._rank, self._world = connect, rank, world
        self._connected: Any = None
        self._poll_s, self._report, self._on_end = poll_s, report, on_end
        self._answered = 0
        self._asks = self._gathers = False
        self._closed = threading.Event()
        self._found: dict[int, Report] | None = None
        self._complete = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hang-peers", daemon=True)
        self._thread.start()

    def gather(self, wait: Callable[[threading.Event], None]) -> dict[int, Report] | None:
        """Reports of all ranks that answer; None where the store itself does not.

        Args:
            wait: Waits for an event, as long as is right.
        """
        self._found = None
        self._complete.clear()
        self._asks = self._gathers = True
        wait(self._complete)
        self._gathers = False
        return self._found

    def elect(self) -> bool:
        """Whether this rank is the first to find the hang, and so tells of it; the others then end too."""
        return int(self._store.add(ENDING, 1)) == 1

    def say_told(self) -> None:
        """Lets the others go."""
        self._store.set(TOLD, "1")

    def told(self) -> bool:
        """Whether the one that tells has done so."""
        return bool(self._store.check([TOLD]))

    @property
    def _store(self) -> Any:
        if self._connected is None:
            raise ConnectionError("the store of the workers' group does not answer")
        return self._connected

    def close(self) -> None:
        """Leaves the group: this rank is through."""
        self._closed.set()
        self._thread.join(self._poll_s + 1)

    def _run(self) -> None:
        try:
            self._connected = self._connect()
            while not self._closed.wait(self._poll_s):
                self._round()
            self._store.set(f"left/{self._rank}", "1")
        except RuntimeError as error:  # torch's errors of a lost store, with the process that had it
            logger.debug("the group's store is gone: %s", error)

    def _round(self) -> None:
        asks, self._asks = self._asks, False
        number = self._store.add(ASKED, int(asks))
        if number > self._answered:
            self._store.set(f"{number}/{self._rank}", json.dumps(self._report()))
            self._answered = number
        if self._gathers and not self._asks:
            self._found = self._reports(number)
            if len(self._found) == self._world:
                self._complete.set()
        if not self._ended and self._store.add(ENDING, 0):
            self._ended = True
            self._on_end()

    def _reports(self, number: int) -> dict[int, Report]:
        found = {}
        for rank in range(self._world):
            if self._store.check([key := f"{number}/{rank}"]):
                found[rank] = Report(*json.loads(self._store.get(key)))
            elif self._store.check([f"left/{rank}"]):
                found[rank] = left(rank)
        return found
