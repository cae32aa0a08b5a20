"""A node's copies of remote objects, shared by all its processes.

A copy's name is its content's SHA-256. Downloads go to names of their own (``.part``), are checked,
synced and renamed: a copy is whole or absent, whatever is killed. Locks are ``flock``, which the
kernel drops with its process:

- exclusive on ``locks/<first digits>``: a download, so that an object comes once for all processes;
- exclusive on ``locks/room``: the books, while room is made;
- shared on a copy or ``.part`` itself: in use. Eviction, least recently used first, takes only what
  it can lock exclusively. A copy removed between opening and locking is still whole to its reader.

Files under ``locks`` are never removed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from dfdet.data.remote import FULL, Interrupted, Remote, StorageError, fetch, fetch_unknown
from dfdet.runs.atomic import sync_folder

log = logging.getLogger(__name__)

GIB = 2**30
_COPY = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}\.(\d+)\.[0-9a-f]+\.part")
_WAIT_S = 0.02
"""Pause between looks at a lock that another process holds (seconds)."""


@dataclass(frozen=True)
class _File:
    used_ns: int
    """When it was last used (nanoseconds)."""
    size: int
    """Its length, for a ``.part`` what it will be (bytes)."""
    path: Path


class Cache:
    """Copies of remote objects in a folder, at most ``max_bytes`` of them but for those in use.

    Args:
        folder: Where they lie; made when the first one comes.
        max_bytes: Bound (bytes).
        retries: Times that a failed transfer is tried again.
    """

    def __init__(self, folder: Path, max_bytes: int, retries: int = 5) -> None:
        self.folder, self.max_bytes, self.retries = folder, max_bytes, retries
        self._warned = False

    def acquire(self, remote: Remote, stop: Event | None = None) -> int:
        """A descriptor of the object's copy, which stays at least until the descriptor is closed.

        Raises:
            ObjectError: The object is gone or changed.
            StorageError: It cannot be fetched, or there is no room for it.
            Interrupted: ``stop`` was set while it was waited for.
        """
        try:
            found = self._open_copy(remote)
            if found is None:
                self._prepare()
                with self._locked(remote.sha256[:3], stop):
                    found = self._open_copy(remote)  # another process may have brought it meanwhile
                    return self._download(remote, stop) if found is None else found
            return found
        except OSError as error:
            raise StorageError(self._problem(error)) from error

    def holds(self, remote: Remote) -> bool:
        """Whether a whole copy lies there now; another process may remove it."""
        try:
            return self._path(remote).stat().st_size == remote.bytes
        except OSError:
            return False

    def discard(self, remote: Remote) -> None:
        """Removes a copy that was found damaged, so that the next use fetches it anew."""
        with suppress(OSError):
            self._path(remote).unlink(missing_ok=True)

    def read(self, remote: Remote) -> bytes:
        """The whole object; raises as :meth:`acquire`."""
        with os.fdopen(self.acquire(remote), "rb") as file:
            return file.read()

    def read_unknown(self, url: str) -> bytes:
        """An object of unknown content, fetched anew each time; raises as :meth:`acquire`."""
        try:
            with TemporaryDirectory(prefix="dfdet-") as folder:
                target = Path(folder) / "object"
                fetch_unknown(url, target, self.retries)
                return target.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{error.filename or 'temporary folder'}: cannot be written ({error.strerror}); make room"
                " there, or set TMPDIR"
            ) from error

    # ---------------------------------------------------------------- copies

    def _path(self, remote: Remote) -> Path:
        return self.folder / remote.sha256

    def _open_copy(self, remote: Remote) -> int | None:
        try:
            descriptor = os.open(self._path(remote), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            status = os.fstat(descriptor)
            if status.st_size == remote.bytes and status.st_nlink:
                with suppress(OSError):  # another user's copy can be read, but not marked as used
                    os.utime(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if status.st_nlink:
            self.discard(remote)
        return None

    def _download(self, remote: Remote, stop: Event | None) -> int:
        """Fetches an object while its lock is held; gives the copy's descriptor."""
        while True:
            part, descriptor = self._reserve(remote, stop)
            try:
                fetch(remote, part, self.retries, stop)
                os.fsync(descriptor)
                os.replace(part, self._path(remote))  # noqa: PTH105
                sync_folder(self.folder)
                return descriptor
            except BaseException as error:
                os.close(descriptor)
                part.unlink(missing_ok=True)
                full = isinstance(error, OSError) and error.errno in FULL
                if not (full and self._make_room(remote.bytes, stop)):
                    raise

    def _reserve(self, remote: Remote, stop: Event | None) -> tuple[Path, int]:
        """A new file for a download, in the books from now on, and its descriptor."""
        part = self.folder / f"{remote.sha256}.{remote.bytes}.{secrets.token_hex(4)}.part"
        with self._locked("room", stop):
            self._evict(sum(file.size for file in self._files()) + remote.bytes - self.max_bytes)
            descriptor = os.open(part, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        return part, descriptor

    # ---------------------------------------------------------------- room

    def _make_room(self, needed: int, stop: Event | None) -> int:
        """After a full disk: removes unused copies; gives the bytes that became free."""
        with self._locked("room", stop):
            return self._free(needed)

    def _evict(self, excess: int) -> None:
        """Keeps the bound as far as copies in use allow."""
        left = excess - (self._free(excess) if excess > 0 else 0)
        if left > 0 and not self._warned:
            self._warned = True
            log.warning(
                "%s: shards in use at once take %.3g GiB, more than data.cache_gib=%.3g: the bound is"
                " exceeded; raise --data.cache_gib, or set a smaller --data.block_shards",
                self.folder,
                (left + self.max_bytes) / GIB,
                self.max_bytes / GIB,
            )

    def _free(self, needed: int) -> int:
        freed = 0
        for file in sorted(self._files(), key=lambda file: file.used_ns):
            if freed >= needed:
                break
            if _remove_unused(file.path):
                freed += file.size
        return freed

    def _files(self) -> Iterator[_File]:
        """Copies, and downloads at the length they will have; remains of killed processes are removed."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                part = _PART.fullmatch(entry.name)
                if not part and not _COPY.fullmatch(entry.name):
                    continue
                path = Path(entry.path)
                if part and _remove_unused(path):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield _File(status.st_mtime_ns, int(part[1]) if part else status.st_size, path)

    # ---------------------------------------------------------------- folder and locks

    def _prepare(self) -> None:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _locked(self, name: str, stop: Event | None) -> Iterator[None]:
        """Holds a lock; each holder opens the file, so that threads exclude each other too."""
        path = self.folder / "locks" / name
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not _try_lock(descriptor):
                if (stop or _NEVER).wait(_WAIT_S):
                    raise Interrupted
            yield
        finally:
            os.close(descriptor)

    def _problem(self, error: OSError) -> str:
        if error.errno in FULL:
            return (
                f"{self.folder}: no room for a shard ({error.strerror}), and no copy there is unused; make"
                " room, or give a folder on a larger disk as --data.cache_dir"
            )
        return f"{self.folder}: cannot be used ({error.strerror or error}); give a writable --data.cache_dir"


_NEVER = Event()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(path: Path) -> bool:
    """Removes a copy, or the remains of a download, unless a process uses it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # gone, or another user's
        return False
    try:
        if not _try_lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
