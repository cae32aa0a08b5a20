"""Which rank is to blame for a hang: a pure function of what each says of itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEFT = "left"


class Report(NamedTuple):
    """What a rank says of itself."""

    rank: int
    marks: int
    """Marks it has passed, see :mod:`dfdet.hang.progress`."""
    step: int
    phase: str
    idle_s: float
    """How long it has passed none (seconds)."""
    overdue: bool
    """Whether that is too long."""
    waits: bool
    """Whether it waits for other ranks."""
    place: str
    """What it does, as ``file.py:12 function``."""


def left(rank: int) -> Report:
    """Of a rank that is through with its training: behind nobody."""
    return Report(rank, sys.maxsize, 0, LEFT, 0.0, False, False, "")


class Hang(NamedTuple):
    """A hang and who is to blame."""

    ranks: tuple[int, ...]
    """To blame."""
    silent: bool
    """Whether these do not answer."""
    together: bool
    """Whether all ranks wait for each other."""
    others: int
    """Ranks that wait for these."""
    step: int
    phase: str
    idle_s: float
    """How long nothing has happened (seconds)."""
    place: str
    """What the first of the ranks does; empty where it does not tell."""

    def __str__(self) -> str:
        where = (
            f"in step {self.step} ({self.phase})" if self.step else f"before the first step ({self.phase})"
        )
        for_s = f"for {self.idle_s:.0f} s"
        at = f"; it is in {self.place}" if self.place else ""
        if self.together:
            at = at.replace("; it is", f"; worker {self.ranks[0]} is")
            return f"all {len(self.ranks)} workers waited for each other {for_s} {where}{at}"
        who = f"worker{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        if self.silent:
            do = "does not answer" if len(self.ranks) == 1 else "do not answer"
            waited = f"while {_count(self.others)} waited {for_s} {where}"
            return f"{who} {do}, {waited}: stopped, stuck in C code, or lost with its node"
        them = "it" if len(self.ranks) == 1 else "them"
        waiting = f", while {_count(self.others)} waited for {them}" if self.others else ""
        if len(self.ranks) > 1:
            at = at.replace("; it is", f"; worker {self.ranks[0]} is")
        return f"{who} did nothing {for_s} {where}{waiting}{at}"


def line(hang: Hang, stacks: str) -> str:
    """What there is to tell of a hang, with the remedy.

    Args:
        hang: The hang.
        stacks: Where the stacks of the workers lie.
    """
    return f"{hang}; stacks: {stacks}; if that is no hang, raise --engine.hang_timeout_s"


def _count(others: int) -> str:
    return f"{others} other{'s' * (others > 1)}"


def judge(reports: Mapping[int, Report], world: int) -> Hang | None:
    """Who is to blame, if there is a hang; None where those that are behind are only slow.

    To blame is who does not answer, and who is furthest behind without waiting for others. Where all
    of the last wait, they are to blame: for each other, or for what does not reach them.

    Args:
        reports: By rank, the own one at least; of those that answered in time.
        world: Number of ranks.
    """
    silent = [rank for rank in range(world) if rank not in reports]
    behind = min(report.marks for report in reports.values())
    last = [report for report in reports.values() if report.marks == behind]
    asleep = [report for report in last if not report.waits]
    if not all(report.overdue for report in asleep or last):
        return None
    if silent and not asleep:
        return _hang(reports, silent, last[0]._replace(place=""), silent=True)
    blamed = asleep or last
    together = not asleep and len(last) == world > 1
    return _hang(reports, [report.rank for report in blamed], blamed[0], together=together)


def _hang(
    reports: Mapping[int, Report],
    ranks: Sequence[int],
    told: Report,
    *,
    silent: bool = False,
    together: bool = False,
) -> Hang:
    others = sum(rank not in ranks and report.phase != LEFT for rank, report in reports.items())
    return Hang(tuple(ranks), silent, together, others, told.step, told.phase, told.idle_s, told.place)
