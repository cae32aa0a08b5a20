"""What one case of ``benchmarks/kills.py`` came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A run that was killed, went on, and was compared with an uninterrupted one."""

    number: int
    """Of the case; with the seed it gives the same kills again."""
    kind: str
    """What was killed."""
    moment: str
    """What the run was doing at its first kill."""
    kills: int
    """How often it was killed (times)."""
    equal: bool
    """Whether batches, losses, weights, metrics and files are those of the uninterrupted run."""
    detail: str
    """The first difference; empty where there is none."""
    seconds: float
    """How long the case took (seconds)."""
