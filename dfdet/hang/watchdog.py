"""Ends a training process when nothing happens any more, in it or in the rank that it waits for.

Two threads that sleep nearly all the time. One counts how long the process has passed no mark
(:mod:`dfdet.hang.progress`); it counts its own short sleeps and looks at no clock, so that a machine
or process that was suspended goes on. The other (:class:`.peers.Peers`) answers the other ranks. A
rank that is overdue asks all of them where they are, and where those that are behind are overdue too
there is a hang: each writes its stacks, one tells, all end, and whoever started them goes on from the
newest checkpoint.

A process whose interpreter is held by some C code can do none of this. Its stacks are written by a
timer without Python, and the other ranks find that it does not answer.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from dfdet.hang.peers import Peers
from dfdet.hang.progress import PROGRESS, patience_s
from dfdet.hang.stacks import doing, dump
from dfdet.hang.verdict import Hang, Report, judge, left

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHORTEST_POLL_S, LONGEST_POLL_S = 0.05, 5.0
ANSWER_S = 60.0
"""How long a rank may take to say where it is (seconds); less where the timeout is shorter."""
WRITE_S = 20.0
"""How long the run folder is waited for at the end, which may be what hangs (seconds)."""


STACKS = "stacks"
"""Of a run folder."""


class Watchdog:
    """Watches the training of the thread that enters it, until it is left.

    Args:
        timeout_s: How long nothing may happen (seconds); 0: for ever.
        rank: This process among those that train together.
        world: Their number; above 1 torch's process group is there.
        stacks: Folder for the stacks of hung processes; made when needed.
        tell: Called in one rank of a hang: records it.
        leave: Called in all ranks, right before the process ends.
        ends_frozen: Whether a lone process whose interpreter is held ends too. That timer counts the
            time in which a process is stopped, as from a terminal.
    """

    def __init__(
        self,
        timeout_s: float,
        rank: int,
        world: int,
        stacks: Path,
        tell: Callable[[Hang], None],
        leave: Callable[[], None] = lambda: None,
        *,
        ends_frozen: bool = False,
    ) -> None:
        self.timeout_s, self.rank, self.world = timeout_s, rank, world
        self.path = stacks / f"rank-{rank}.txt"
        self._tell, self._leave = tell, leave
        self._exits = ends_frozen and world == 1
        self._poll_s = min(max(timeout_s / 20, SHORTEST_POLL_S), LONGEST_POLL_S)
        self._answer_s = min(timeout_s, ANSWER_S)
        self._idle_s = 0.0
        self._closed, self._dumped = threading.Event(), threading.Event()
        self._file: IO[str] | None = None
        self._peers: Peers | None = None

    def __enter__(self) -> Self:
        if not self.timeout_s:
            return self
        PROGRESS.begin()
        self._watched = threading.get_ident()
        self._file = self._open()
        if self.world > 1:
            self._peers = Peers(_store, self.rank, self.world, self._poll_s, self._report, self._dump)
        self._rearm()
        self._thread = threading.Thread(target=self._watch, name="hang-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.timeout_s:
            return
        self._closed.set()
        self._thread.join()
        if self._peers:
            self._peers.close()
        if self._file:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            _remove_empty(self.path)

    # ---------------------------------------------------------------- while all is well

    def _watch(self) -> None:
        seen = None
        while not self._closed.wait(self._poll_s):
            self._rearm()
            now = (PROGRESS.at, PROGRESS.signs)
            self._idle_s = self._idle_s + self._poll_s if now == seen else 0.0
            seen = now
            if self._overdue() and (hang := self._judge()):
                self._end(hang)

    def _rearm(self) -> None:
        """Puts off the timer that needs no interpreter."""
        if self._file:
            later_s = self.timeout_s if self.world == 1 else 0.75 * self._answer_s
            faulthandler.dump_traceback_later(later_s + self._poll_s, file=self._file, exit=self._exits)

    def _overdue(self) -> bool:
        return self._idle_s >= patience_s(PROGRESS.at, self.timeout_s)

    def _report(self) -> Report:
        at, now = PROGRESS.at, doing(self._watched)
        return Report(
            self.rank, at.marks, at.step, at.phase, self._idle_s, self._overdue(), now.waits, now.place
        )

    # ---------------------------------------------------------------- when it is not

    def _judge(self) -> Hang | None:
        """Who hangs, if one does and this process has not gone on meanwhile."""
        if self._peers is None:
            return judge({self.rank: self._report()}, 1)
        at = PROGRESS.at
        reports = self._peers.gather(self._wait_for_answer)
        if at != PROGRESS.at or self._closed.is_set():
            return None
        if reports is None:  # it is in the first rank's process, where torchrun has not made it
            reports = {rank: left(rank) for rank in range(1, self.world)}
        return judge(reports | {self.rank: self._report()}, self.world)

    def _wait_for_answer(self, answered: threading.Event) -> None:
        """Waits in short sleeps: no single one may have lasted through a suspension."""
        for _ in range(int(self._answer_s / self._poll_s) + 1):
            if answered.wait(self._poll_s) or self._closed.is_set():
                return
            self._rearm()

    def _end(self, hang: Hang) -> None:
        """Leaves stacks and a word, and ends the process."""
        alone = self._peers is None or self.rank in hang.ranks or self.rank == 1
        tells = within(WRITE_S, self._peers.elect, alone) if self._peers else True
        within(WRITE_S, self._dump, None)
        if tells:
            if self._peers:  # the others write their stacks when they see that it is the end
                time.sleep(2 * self._poll_s)
            within(WRITE_S, lambda: self._tell(hang), None)
        if self._peers:
            within(2 * WRITE_S, self._peers.say_told if tells else self._await_told, None)
        within(WRITE_S, self._leave, None)
        within(1.0, sys.stdout.flush, None)
        within(1.0, sys.stderr.flush, None)
        os._exit(1)

    def _await_told(self) -> None:
        assert self._peers is not None
        while not self._peers.told():
            time.sleep(self._poll_s)

    def _dump(self) -> None:
        if self._dumped.is_set():
            return
        self._dumped.set()
        at, now = PROGRESS.at, datetime.now(UTC).isoformat(timespec="seconds")
        where = f"worker {self.rank} (pid {os.getpid()} on {socket.gethostname()})"
        try:
            dump(
                self.path,
                f"{now} {where}: {self._idle_s:.0f} s in step {at.step} ({at.phase})",
                self._watched,
            )
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.path, error)

    def _open(self) -> IO[str] | None:
        try:
            self.path.parent.mkdir(exist_ok=True)
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.path, error)
            return None


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """What work gives; something else where it fails or takes longer: it may hang itself."""
    found: list[T] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001 - the process ends, whatever this was
            logger.error("%s", error)

    thread = threading.Thread(target=run, name="hang-end", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else otherwise


def _store() -> Any:
    """Another connection to the store of torch's process group, which has no public name."""
    import torch.distributed as dist

    default = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore("hang", default).clone()


def _remove_empty(path: Path) -> None:
    try:
        if path.stat().st_size == 0:
            path.unlink()
            path.parent.rmdir()
    except OSError:
        pass  # another rank's is there, or the storage is away
