"""Files of a run between a process's working copy and the URL that the run lies at.

Each object has one writing process at a time. Logs, curves and pictures are put from a thread as they
grow; checkpoints by :mod:`dfdet.runs.checkpoint_mirror`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dfdet.runs.atomic import write_bytes_atomic
from dfdet.runs.objects import Store
from dfdet.runs.patience import Warner, cause

logger = logging.getLogger(__name__)

POLL_S = 2.0
"""Pause between looks at what others have written, and at what is new here (seconds)."""
PUT_S_PER_MIB = 10.0
"""A growing file is put whole each time, so a longer one less often: after so many seconds a MiB."""
ATTEMPT = "ray/attempt"
"""Names the workers that may write; see ``ray_jobs.notices``."""
METRICS = "metrics.jsonl"

Signature = tuple[int, int, int]


class SupersededError(RuntimeError):
    """This process belongs to an attempt, or a group of workers, that others have taken the place of."""


class Mirror:
    """Moves files between a working copy and the run's objects.

    Args:
        store: Of the run.
        folder: The working copy.
        owned: Files that only this process writes, and folders (with a slash) of such: put as they grow.
        watched: Files that others write, kept up to date here.
        followed: Growing files of others, kept up to date here.
        group: Of workers that this process belongs to, for as long as :data:`ATTEMPT` names it; None where
            there are none.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        owned: Sequence[str] = (),
        watched: Sequence[str] = (),
        followed: Sequence[str] = (),
        group: str | None = None,
    ) -> None:
        self.store, self.folder, self.group = store, folder, group
        self.owned, self.watched, self.followed = tuple(owned), tuple(watched), tuple(followed)
        self._sent: dict[str, Signature] = {}
        self._due: dict[str, float] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-mirror", daemon=True)

    def start(self) -> None:
        """From now on a thread keeps both sides up to date."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; puts what is new once more, as far as that is possible now."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(SupersededError):
            try:
                self.put_grown(at_once=True)
            except OSError as error:
                logger.warning("%s: the end of the log was not put there (%s)", self.store.url, cause(error))

    def _run(self) -> None:
        warner = Warner(logger)
        while not self._closed.wait(POLL_S):
            try:
                self.look()
                self.put_grown()
            except SupersededError:
                return
            except OSError as error:
                warner.warn("%s: out of reach (%s); trying again", self.store.url, cause(error))

    # ---------------------------------------------------------------- from the URL

    def look(self) -> None:
        """Brings what others have written meanwhile."""
        for name in self.watched:
            self.bring(name)
        for name in self.followed:
            self._follow(name)

    def bring(self, name: str) -> None:
        """Brings a small file; one that is not there stays as it is here.

        Raises:
            OSError: The storage is away.
        """
        data, path = self.store.get(name), self.folder / name
        if data is not None and not (path.exists() and path.read_bytes() == data):
            self._write(name, data)
            if self.owns(name):
                self._sent[name] = signature(path)

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, data)

    def _follow(self, name: str) -> None:
        """Brings what a file has grown by."""
        stat, path = self.store.stat(name), self.folder / name
        have = path.stat().st_size if path.exists() else 0
        if stat is None or stat.size == have:
            return
        if stat.size < have:  # written anew
            self.bring(name)
            return
        grown = self.store.get_range(name, have, stat.size)
        with path.open("ab") as file:
            file.write(grown)

    # ---------------------------------------------------------------- to the URL

    def put(self, name: str) -> None:
        """Puts a file now.

        Raises:
            SupersededError: Other workers have taken the place of these.
            OSError: The storage is away, full or denies access.
        """
        with self._lock:
            self._check_current()
            self._put(name)

    def put_grown(self, *, at_once: bool = False) -> None:
        """Puts what has changed of the files that this process owns; long ones not at each call.

        Raises:
            SupersededError: Other workers have taken the place of these.
            OSError: The storage is away, full or denies access.
        """
        with self._lock:
            now = time.monotonic()
            due = [name for name in self._changed() if at_once or now >= self._due.get(name, now)]
            if due:
                self._check_current()
            for name in due:
                self._put(name)
                self._due[name] = now + PUT_S_PER_MIB * self._sent[name][0] / 2**20

    def _put(self, name: str) -> None:
        path = self.folder / name
        if not self._is_new(name):
            return
        version = signature(path)
        self.store.put(name, path.read_bytes())
        self._sent[name] = version

    def _is_new(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and self._sent.get(name) != signature(path)

    def _changed(self) -> list[str]:
        """Owned files that are not at the URL as they are here."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        names = [str(path.relative_to(self.folder)) for path in paths]
        return [name for name in sorted(names) if self.owns(name) and self._is_new(name)]

    def owns(self, name: str) -> bool:
        """Whether this process alone writes a file, which is put as it grows."""
        hidden = any(part.startswith(".") for part in name.split("/"))
        folders = tuple(owned for owned in self.owned if owned.endswith("/"))
        return not hidden and (name in self.owned or name.startswith(folders))

    def _check_current(self) -> None:
        if self.group is None:
            return
        current = self.store.get(ATTEMPT)
        if current is not None and current.decode(errors="replace") != self.group:
            self._write(ATTEMPT, current)
            raise SupersededError(f"run folder {self.store.url}: belongs to later workers")


def signature(path: Path) -> Signature:
    """What tells a file's versions apart: size (bytes), time (nanoseconds), inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
