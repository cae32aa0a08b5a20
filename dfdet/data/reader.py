"""Reads image bytes at indexed offsets of tars, and believes them only if their checksum agrees."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

MAX_OPEN = 256
"""Descriptors held at once; a usual process limit is 1024."""


class DamageError(Exception):
    """Bytes that cannot be used; ``reason`` is the word they are counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Reader:
    """Shared by threads: ``pread`` has no file position, descriptors are opened when first needed.

    ``pread`` rather than ``mmap``: a file that shrinks gives a short read, not a SIGBUS.

    Args:
        paths: Tars, by number.
        max_open: Most descriptors held open; those in use at the moment may exceed it.
    """

    def __init__(self, paths: Sequence[Path], max_open: int = MAX_OPEN) -> None:
        self._paths = paths
        self._max_open = max_open
        self._lock = threading.Lock()
        # shard -> [descriptor, threads reading from it], least recently used first
        self._open: OrderedDict[int, list[int]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, shard: int, offset: int, size: int, crc32: int) -> bytes:
        """The image's bytes.

        A flipped bit decodes to wrong pixels without an error in 98 % of JPEGs and 96 % of WebPs:
        nothing but the checksum tells.

        Raises:
            DamageError: ``read`` (the file cannot be read), ``short`` or ``crc``.
        """
        try:
            descriptor = self._acquire(shard)
            try:
                data = os.pread(descriptor, size, offset)
            finally:
                self._release(shard)
        except OSError as error:
            raise DamageError("read", str(error)) from error
        if len(data) != size:
            raise DamageError("short", f"{len(data)} of {size} bytes: the tar is truncated")
        if (found := zlib.crc32(data)) != crc32:
            raise DamageError("crc", f"crc32 {found:08x} instead of {crc32:08x}: the bytes were changed")
        return data

    def close(self) -> None:
        """Closes all descriptors; reading again opens them again. No thread may be reading."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1][0])

    def _acquire(self, shard: int) -> int:
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                self._evict()
                entry = self._open[shard] = [os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC), 0]
            self._open.move_to_end(shard)
            entry[1] += 1
            return entry[0]

    def _release(self, shard: int) -> None:
        with self._lock:
            self._open[shard][1] -= 1

    def _evict(self) -> None:
        idle = [shard for shard, (_, users) in self._open.items() if not users]
        for shard in idle[: max(0, len(self._open) - self._max_open + 1)]:
            os.close(self._open.pop(shard)[0])
