"""Where the time from a command to its first step goes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass
class Startup:
    """Seconds of each part of a start, in order; a driver hands its own on to the workers.

    Parts are told apart by the wall clock: one that ends on another host than it began on is off by
    what the clocks differ.
    """

    begun: float = field(default_factory=time.time)
    """When the command began (seconds since 1970)."""
    parts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_process(cls) -> Self:
        """Begins with this process, before its imports; now, where the system does not tell."""
        try:
            ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return cls()
        return cls(time.time() - max(0.0, age))

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
