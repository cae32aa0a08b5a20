"""A process's own working copy of a run folder that lies behind a URL.

Copies lie on the local disk, ``<cache>/runs/<URL's hash>/<role>-<random>/<run>``. One belongs to a
living process as long as that holds the lock in it; what killed processes have left is removed by the
next one of the same run, but for copies that hold what never came to the URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path

from dfdet.errors import RunFolderError

logger = logging.getLogger(__name__)

LOCK, KEPT = "lock", "kept"


class WorkingCopy:
    """A folder of this process alone.

    Args:
        cache_dir: Folder for data that can be fetched again (``data.cache_dir``).
        url: Of the run.
        role: Of this process, for its name.

    Raises:
        RunFolderError: It cannot be made.
    """

    def __init__(self, cache_dir: str, url: str, role: str) -> None:
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        root = Path(cache_dir).expanduser().absolute() / "runs" / digest
        self._folder = root / f"{role}-{secrets.token_hex(4)}"
        self.path = self._folder / url.rpartition("/")[2]
        """The copy of the run folder, empty."""
        try:
            self._descriptor = self._make()
            remove_left(root)
        except OSError as error:
            raise RunFolderError(
                f"{root}: a working copy of {url} cannot be made there ({error.strerror or error}); give a"
                " writable --data.cache_dir"
            ) from error

    def _make(self) -> int:
        """Makes it under a name that :func:`remove_left` passes over; gives the lock's descriptor."""
        hidden = self._folder.with_name(f".{self._folder.name}")
        (hidden / self.path.name).mkdir(parents=True)
        descriptor = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        hidden.rename(self._folder)
        return descriptor

    def keep(self) -> None:
        """Lets it stay when this process is gone: it holds what is nowhere else."""
        (self._folder / KEPT).touch()

    def discard(self) -> None:
        """Removes it, unless it is to stay; again is harmless."""
        if not (self._folder / KEPT).exists():
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def remove_left(root: Path) -> None:
    """Removes copies whose processes are gone."""
    for folder in root.glob("[!.]*"):
        if (folder / KEPT).exists():
            continue
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another one removes it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)
