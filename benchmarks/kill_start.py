"""Two ranks of ``python -m dfdet``, started as torchrun starts them, but forked from a warm process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dfdet.runs.ownership import process_start

RANKS = 2
GRACE_S = 2.0
"""Time that the launcher leaves a rank whose neighbour has died (seconds)."""
LITTER = (".tmp-", ".old-", ".gone-")
PR_SET_CHILD_SUBREAPER = 36


def preload() -> None:
    """Imports what a run needs, and adopts the ranks of launchers that die."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    from dfdet.training.engine import import_deepspeed

    import_deepspeed(torch.device("cpu"))
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this needs Linux: ranks whose launcher dies could not be waited for")
    gc.freeze()


def in_a_fork(work: Callable[[], None]) -> None:
    """Does work that starts threads, after which this process could not fork safely."""
    pid = os.fork()
    if pid == 0:
        _become(lambda: work() or 0, None)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("a preparation failed: see above")


class Start:
    """One start of the command: a launcher and its ranks."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self._log_size = _size(output.parent / "run" / "log.txt")
        read, write = os.pipe()
        self._began = time.monotonic()
        self.launcher = os.fork()
        if self.launcher == 0:
            os.close(read)
            _become(lambda: _launch(arguments, write), output)
        os.close(write)
        with os.fdopen(read) as pids:
            self.ranks = [int(pid) for pid in pids.readline().split()]
        self._code: int | None = None

    def age(self) -> float:
        """Time since the start (seconds)."""
        return time.monotonic() - self._began

    def ended(self) -> bool:
        """Whether the launcher has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.launcher, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def code(self) -> int:
        """The launcher's exit code, when it has ended."""
        while not self.ended():
            time.sleep(0.005)
        assert self._code is not None
        return self._code

    def kill(self, kind: str) -> bool:
        """SIGKILL to the first rank, the second rank, both ranks or the launcher; waits for its end.

        Returns:
            Whether it hit one that still ran.
        """
        ranks = {"first rank": self.ranks[:1], "second rank": self.ranks[1:], "both ranks": self.ranks}
        victims = [pid for pid in ranks.get(kind, [self.launcher]) if process_start(pid) is not None]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.code()
        return bool(victims)

    def orphans(self) -> list[Start]:
        """This, if ranks of it still run."""
        return [self] if any(map(_runs, self.ranks)) else []

    def wait_for_ranks(self) -> None:
        """Waits until the ranks have ended."""
        while any(map(_runs, self.ranks)):
            time.sleep(0.01)

    def phase(self, run: Path) -> str:
        """What the run was doing when it was killed, by its log and its folder."""
        lines = _read(run / "log.txt")[self._log_size :].splitlines()
        told = [line for line in lines if re.search(r" (step|epoch) \d+/\d+ ", line)]
        if any(path.name.startswith(LITTER) for path in (run / "checkpoints").glob(".*")):
            return "checkpoint"
        if not told:
            return "final evaluation" if any("resumed" in line for line in lines[-1:]) else "start-up"
        word, done, of = re.findall(r" (step|epoch) (\d+)/(\d+) ", told[-1])[0]
        if word == "epoch":
            return "final evaluation" if done == of else "epoch end"
        return "epoch end" if int(done) in (int(of), int(of) // 2) else "steps"


def _launch(arguments: list[str], pids: int) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [_fork_rank(arguments, group | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(RANKS)]
    os.write(pids, (" ".join(map(str, ranks)) + "\n").encode())
    os.close(pids)
    codes = []
    for _ in ranks:
        _, status = os.wait() if not any(codes) else _wait_a_while(ranks)
        codes.append(os.waitstatus_to_exitcode(status))
    return next((code if code > 0 else 1 for code in codes if code), 0)


def _wait_a_while(ranks: list[int]) -> tuple[int, int]:
    """The next rank to end, by itself or by force."""
    deadline = time.monotonic() + GRACE_S
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, status
        if time.monotonic() > deadline:
            for rank in filter(_runs, ranks):
                os.kill(rank, signal.SIGKILL)
            return os.wait()
        time.sleep(0.005)


def _fork_rank(arguments: list[str], environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.environ |= environment
        from dfdet.__main__ import main

        _become(lambda: main(arguments), None)
    return pid


def _become(work: Callable[[], int], output: Path | None) -> None:
    """Does the work in this fork and ends it, its output in a file; never returns."""
    code = 1
    try:
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        code = work()
        sys.stdout.flush()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _runs(pid: int) -> bool:
    """Whether a process runs; an adopted one that has ended is reaped."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return process_start(pid) is not None


def _size(path: Path) -> int:
    return len(_read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
