"""Where this process's training is, as its watchdog sees it.

A process trains once at a time, so there is one :data:`PROGRESS`. All ranks pass the same marks in the
same order: their numbers tell who is behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")

FIRST_S = 1800.0
"""How long the first of each phase may take at least: it may compile, download or connect (seconds)."""
ROOM_S = 900.0
"""How much longer a collective waits than a watchdog, which shall be the first to tell (seconds)."""


class At(NamedTuple):
    """A place in the course of training."""

    marks: int = 0
    """Marks passed; comparable between ranks."""
    phase: str = "start"
    """What is being done."""
    step: int = 0
    """The step that this belongs to, from 1; 0 before the first."""
    first: bool = True
    """Whether the phase is here for the first time."""


class Progress:
    """Marks of a training process: each costs a microsecond and touches no device."""

    def __init__(self) -> None:
        self.at = At()
        """Replaced as a whole, so that another thread reads no half of a change."""
        self.signs = 0
        """Signs of life that are no mark."""
        self._known: set[str] = set()

    def begin(self) -> None:
        """Starts anew, for a training in a process that has had one before."""
        self._known.clear()
        self.at = At()

    def mark(self, phase: str, step: int | None = None) -> None:
        """A phase begins; to be passed by all ranks alike."""
        at, first = self.at, phase not in self._known
        self._known.add(phase)
        self.at = At(at.marks + 1, phase, at.step if step is None else step, first)

    def alive(self) -> None:
        """A sign of life of something that is bounded by a patience of its own; any rank, any thread."""
        self.signs += 1

    def through(self, items: Iterable[T], waiting: str, working: str, step: int | None = None) -> Iterator[T]:
        """The items, with what is done for and with each marked.

        Args:
            items: One a step, where there is one.
            waiting: The phase of getting an item.
            working: The phase of what is done with it.
            step: Of the first item.
        """
        iterator = iter(items)
        while True:
            self.mark(waiting, step)
            step = None if step is None else step + 1
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.mark(working)
            yield item


PROGRESS = Progress()
"""Of this process."""


def patience_s(at: At, timeout_s: float) -> float:
    """How long a process may stay at a place (seconds)."""
    return max(timeout_s, FIRST_S) if at.first else timeout_s


def group_timeout_s(timeout_s: float) -> float:
    """How long a rank waits for the others in a collective (seconds)."""
    return max(timeout_s, FIRST_S) + ROOM_S
