"""Files that survive crashes: synced writes and a locked folder for what is not finished."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import IO

from dfdet.errors import ShardSetError
from dfdet.schema import FileEntry

_log = logging.getLogger(__name__)


class LockedFolder:
    """``.<name>.<suffix>`` in a folder, locked: one writer at a time; what a killed one left stays.

    The lock is a file inside, since network file systems do not lock folders.

    Raises:
        ShardSetError: The folder cannot be written, or another process holds the lock.
    """

    def __init__(self, folder: Path, name: str, suffix: str) -> None:
        self.path = folder / f".{name}.{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        except BlockingIOError as error:
            raise ShardSetError(
                f"shard set {name!r} in {folder} is being written by another process{self._holder()};"
                " wait for it, or stop it"
            ) from error
        except OSError as error:
            raise ShardSetError(
                f"folder {folder} cannot be written ({error.strerror}); give a folder that can"
            ) from error

    def release(self) -> None:
        """Frees the lock and leaves the files."""
        self._lock.close()

    def remove(self) -> None:
        """Removes the folder with all that is in it, and frees the lock."""
        with contextlib.suppress(OSError):
            self.sweep()
            (self.path / "lock").unlink()  # Last, so that no file of a next owner is swept.
            self.path.rmdir()
        self._lock.close()

    def sweep(self) -> None:
        """Removes all that is in the folder but the lock."""
        for remains in self.path.iterdir():
            if remains.is_dir() and not remains.is_symlink():
                shutil.rmtree(remains)
            elif remains.name != "lock":
                remains.unlink()

    def _holder(self) -> str:
        """Process and host of who holds the lock; empty where it does not tell."""
        try:
            return (self.path / "lock").read_text(encoding="utf-8", errors="replace")[:100]
        except OSError:
            return ""

    def _locked(self) -> IO[bytes]:
        while True:
            self.path.mkdir(exist_ok=True)
            try:
                lock = (self.path / "lock").open("ab")  # what its holder wrote stays
            except FileNotFoundError:
                continue
            try:
                _flock(lock)
                if (self.path / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    lock.truncate(0)
                    lock.write(f" ({os.getpid()} on {socket.gethostname()})".encode())
                    lock.flush()
                    return lock
            except FileNotFoundError:
                pass  # The former owner removed the folder after we had opened its lock.
            except OSError:
                lock.close()
                raise
            lock.close()


class TemporaryFolder(LockedFolder):
    """``.<name>.tmp`` in a folder: remains of a killed writer are swept.

    Raises:
        ShardSetError: As :class:`LockedFolder`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name, "tmp")
        self.sweep()


def _flock(lock: IO[bytes]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # Some network file systems have no locks.
        _log.warning("no lock on %s (%s): let only one process write the set", lock.name, error.strerror)


def write_synced(path: Path, data: bytes) -> FileEntry:
    """Writes a new file to disk; returns its name, size and checksum."""
    with path.open("xb") as file:
        file.write(data)
        sync(file)
    return FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def sync(file: IO[bytes]) -> None:
    """Forces a file's bytes to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries (new, renamed and removed files) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a finished file; a copy where the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            sync(file)
