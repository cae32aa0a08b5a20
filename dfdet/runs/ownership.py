"""One owner of a folder at a time, over processes and hosts.

``owner.json`` names the owner, and its modification time is the heartbeat: both sides read the
storage's clock, so clocks that differ between hosts do no harm. Every look and change happens under
an flock on ``owner.lock``, a file that is never unlinked (a lock on an unlinked file excludes nobody).
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from dfdet.errors import RunFolderError
from dfdet.runs.atomic import write_json_atomic
from dfdet.runs.patience import Warner, cause

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0

NAME_FLAG = "--run.name"


class Owner(BaseModel):
    """Who owns a folder."""

    host: str = "unknown host"
    machine: str = ""
    """Boot and process namespace in which ``pid`` means something."""
    pid: int = -1
    started: str | None = None
    """Start time of the process as its kernel tells it: a pid that was given anew is another process."""
    since: str = ""
    """UTC time of the claim (ISO 8601)."""
    token: str = ""
    """Random name of this claim."""

    @classmethod
    def here(cls) -> Owner:
        """A new claim by this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=process_start(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
        )

    def is_live(self, age_seconds: float) -> bool:
        """Whether the owner still runs.

        Where its process can be seen, that decides; elsewhere the age of the heartbeat does.

        Args:
            age_seconds: Time since the last heartbeat.
        """
        if self.machine == _machine():
            return self.started is not None and process_start(self.pid) == self.started
        return age_seconds < STALE_SECONDS


class Ownership:
    """A held folder; a thread keeps its heartbeat until :meth:`release`."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self.owner = owner
        self.lost = False
        """Whether another process has taken the folder over (after this one hung for a minute)."""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-folder-heartbeat", daemon=True)

    @classmethod
    def take(cls, folder: Path, flag: str = NAME_FLAG) -> Ownership:
        """Takes an existing folder.

        Args:
            folder: Its path.
            flag: What a user gives to have another one, for the error.

        Raises:
            RunFolderError: A live process owns it (named with its host).
            OSError: The folder is not writable or its filesystem has no locks.
        """
        with locked(folder) as now:
            current, heartbeat = _read(folder)
            if current and current.is_live(now - heartbeat):
                raise in_use(folder, current, now - heartbeat, flag)
            if current:
                logger.info("run folder %s: its owner %d on %s is gone", folder, current.pid, current.host)
            ownership = cls(folder, Owner.here())
            write_json_atomic(folder / "owner.json", ownership.owner.model_dump())
        ownership._thread.start()
        return ownership

    def release(self) -> None:
        """Gives the folder back; again is harmless."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with locked(self.folder):
                if self._is_ours():
                    (self.folder / "owner.json").unlink()
        except OSError as error:  # its process being gone frees it too
            logger.info("run folder %s: not there for its release (%s)", self.folder, cause(error))

    def _beat(self) -> None:
        warner = Warner(logger)
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                with locked(self.folder):
                    ours = self._is_ours()
                    if ours:
                        os.utime(self.folder / "owner.json")
                    else:  # or was the folder moved away just now, which makes this an OSError?
                        (self.folder / "owner.lock").stat()
                    self.lost = not ours
            except OSError as error:
                warner.warn("run folder %s: no heartbeat (%s); trying again", self.folder, cause(error))
            if self.lost:
                logger.error("run folder %s: another process has taken it over", self.folder)
                return

    def _is_ours(self) -> bool:
        current, _ = _read(self.folder)
        return current is not None and current.token == self.owner.token


def in_use(folder: Path | str, owner: Owner, age_seconds: float, flag: str = NAME_FLAG) -> RunFolderError:
    """The error of a folder whose owner is live.

    Args:
        folder: Its path or URL.
        owner: Who holds it.
        age_seconds: Time since its last heartbeat.
        flag: What a user gives to have another folder.
    """
    what = "run folder" if flag == NAME_FLAG else flag
    return RunFolderError(
        f"{what} {folder}: in use by process {owner.pid} on {owner.host}"
        f" (last sign of life {max(0.0, age_seconds):.0f} s ago);"
        f" stop that run or wait for it, or give another {flag}"
    )


def parse_owner(text: str | bytes) -> Owner:
    """The owner that a file names; one without a name where it cannot be read, so that its age decides."""
    try:
        return Owner.model_validate_json(text)
    except ValidationError:
        return Owner()


@contextmanager
def locked(folder: Path) -> Iterator[float]:
    """Holds the folder's lock, which a thread cannot take twice; gives the storage's time of day (seconds).

    Raises:
        OSError: The folder is not there, not writable, or its filesystem has no locks.
    """
    descriptor = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.utime(descriptor)
        yield os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def is_live(folder: Path) -> bool:
    """Whether a live process owns a folder; a folder that is not there has no owner.

    Raises:
        OSError: The storage cannot be read.
    """
    try:
        with locked(folder) as now:
            owner, heartbeat = _read(folder)
    except FileNotFoundError:
        return False
    return owner is not None and owner.is_live(now - heartbeat)


def _read(folder: Path) -> tuple[Owner | None, float]:
    """The recorded owner, None where there is none, and its heartbeat (seconds, storage's clock)."""
    path = folder / "owner.json"
    try:
        heartbeat, text = path.stat().st_mtime, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, 0.0
    return parse_owner(text), heartbeat


def process_start(pid: int) -> str | None:
    """Start time of a running process in the kernel's words; None for a dead one or a zombie."""
    try:
        # proc(5): fields after the last ")" (the name may hold spaces), state first, start time 20th
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        return None if Path("/proc/self/stat").exists() else _signalled(pid)


def _signalled(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
