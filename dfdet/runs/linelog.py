"""A file of lines that only grows, on storage that may be full or away for a while."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

from dfdet.runs.patience import Warner, cause

logger = logging.getLogger(__name__)

KEPT = 10_000
"""Lines kept in memory at most while they cannot be written: 6 MB of metrics (lines)."""
TAIL = 1 << 16


class LineLog:
    """Appends lines, each once and whole; for one writing process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque()
        self._good: int | None = None
        """Size of the file before a write that failed half-way (bytes)."""
        self._dropped = 0
        self._warner = Warner(logger)

    def append(self, line: str) -> None:
        """Adds a line; where the storage refuses it, it waits in memory for the next one."""
        self._waiting.append(line.encode() + b"\n")
        if len(self._waiting) > KEPT:
            self._waiting.popleft()
            self._dropped += 1
        try:
            self.flush()
        except OSError as error:
            self._warner.warn(
                "%s: cannot be written (%s); %d lines wait in memory, %d of the oldest are lost",
                self.path,
                cause(error),
                len(self._waiting),
                self._dropped,
            )

    def flush(self) -> None:
        """Writes the lines that wait.

        Raises:
            OSError: The storage refuses them still.
        """
        if not self._waiting:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            start = end_of_lines(descriptor)
            if self._good is not None:
                start = min(start, self._good)
            self._good = start
            os.ftruncate(descriptor, start)
            write_at(descriptor, b"".join(self._waiting), start)
        finally:
            os.close(descriptor)  # may raise too: then the lines are written again over these
        self._good = None
        self._waiting.clear()


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of ``data``; a full disk takes some of it before it refuses."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def end_of_lines(descriptor: int) -> int:
    """Where the last whole line ends: a kill may have cut one short (bytes)."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - TAIL)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
