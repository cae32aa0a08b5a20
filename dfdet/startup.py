"""Where the time from a command to its first step goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Startup:
    """Seconds of each part of a start, in order; a driver hands its own on to the workers.

    Parts are told apart by the wall clock: those that end on another host than they began on are off
    by what the clocks differ.
    """

    begun: float = field(default_factory=time.time)
    """When the command began (seconds since 1970)."""
    parts: dict[str, float] = field(default_factory=dict)

    def mark(self, part: str) -> None:
        """Ends a part: it lasted since the end of the one before."""
        self.parts[part] = round(max(0.0, time.time() - self.begun - self.total), 3)

    @property
    def total(self) -> float:
        """All parts together (seconds)."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        shown = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"first step after {self.total:.1f} s: {shown}"
