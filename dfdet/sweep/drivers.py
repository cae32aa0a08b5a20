"""The processes that drive one sweep: one lock for all of them, and who is still alive.

A driver owns ``<sweep>/drivers/<token>``, whose heartbeat goes on while its process lives.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from dfdet.runs.atomic import write_bytes_once
from dfdet.runs.ownership import Ownership, is_live, locked
from dfdet.runs.patience import patiently

logger = logging.getLogger(__name__)

T = TypeVar("T")

HOME = "home"
"""File with the sweep folder's own name."""


class Drivers:
    """This process as a driver among others; it stays one until :meth:`leave`.

    Args:
        sweep: The sweep's folder, on storage that all its drivers see; made where it is not there.
        patience_s: How long storage that is full or away is tried again (seconds).

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, sweep: Path, patience_s: float) -> None:
        self.sweep, self.patience_s = sweep, patience_s
        self.folder = sweep / "drivers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.me = secrets.token_hex(8)
        """This driver's name."""
        with locked(sweep):
            self._remove_dead()
            (self.folder / self.me).mkdir()
            self._ownership = Ownership.take(self.folder / self.me)

    def leave(self) -> None:
        """Counts as gone from now on; again is harmless."""
        self._ownership.release()
        shutil.rmtree(self.folder / self.me, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps all other drivers waiting; a thread cannot take it twice.

        Raises:
            TrainingError: The storage was away for too long.
        """
        with ExitStack() as stack:
            self._patiently(lambda: stack.enter_context(locked(self.sweep)))
            yield

    def gone(self, names: Iterable[str]) -> set[str]:
        """Which of these drivers live no more; while the storage is away there is no telling.

        Raises:
            TrainingError: The storage was away for too long.
        """
        others = set(names) - {self.me}
        return self._patiently(lambda: {name for name in others if self._is_gone(name)})

    def _is_gone(self, name: str) -> bool:
        if is_live(self.folder / name):
            return False
        (self.folder / self.me).stat()  # or is the storage away, and with it all folders?
        return True

    def home(self) -> str:
        """The sweep folder's own name for life, wherever it is moved; call it under the lock.

        Raises:
            OSError: The folder cannot be read or written.
        """
        path = self.sweep / HOME
        if not path.exists():
            write_bytes_once(path, secrets.token_hex(16).encode())
        return path.read_text(encoding="ascii")

    def _remove_dead(self) -> None:
        for folder in self.folder.iterdir():
            if folder.is_dir() and not is_live(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _patiently(self, work: Callable[[], T]) -> T:
        return patiently(work, f"sweep {self.sweep}", self.patience_s)
