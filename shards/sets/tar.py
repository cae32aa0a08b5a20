"""A tar writer that knows where payloads lie: fixed metadata, exact offsets, checksum on the way."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

from dfdet.schema import ShardEntry
from shards.sets.files import sync


class Member(NamedTuple):
    """A tar member: formatted header and payload."""

    header: bytes
    payload: bytes

    @property
    def bytes_in_tar(self) -> int:
        """Size in the tar, where payloads fill whole blocks."""
        return len(self.header) + len(self.payload) + _padding(len(self.payload), tarfile.BLOCKSIZE)


def make_member(name: str, payload: bytes) -> Member:
    """A plain file of fixed owner (0), mode (644) and time (0); long names get a PAX header."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    return Member(info.tobuf(tarfile.PAX_FORMAT, "utf-8"), payload)


def closed_bytes(size: int) -> int:
    """Bytes of a tar with that many bytes of members: two zero blocks end it, records fill it."""
    end = size + 2 * tarfile.BLOCKSIZE
    return end + _padding(end, tarfile.RECORDSIZE)


class TarFile:
    """A tar in the making.

    The bytes are laid out here and ``tarfile`` formats the headers only, because the offset of a
    member it has written is not public.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.samples = 0
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()

    def add(self, member: Member) -> int:
        """Appends a member; returns the offset of its payload (bytes)."""
        self._put(member.header)
        offset = self.bytes
        self._put(member.payload)
        self._put(bytes(_padding(len(member.payload), tarfile.BLOCKSIZE)))
        return offset

    def close(self) -> ShardEntry:
        """Ends the tar and writes it to disk."""
        self._put(bytes(closed_bytes(self.bytes) - self.bytes))
        sync(self._file)
        self._file.close()
        sha256 = self._sha256.hexdigest()
        return ShardEntry(file=self.path.name, bytes=self.bytes, sha256=sha256, samples=self.samples)

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)


def _padding(size: int, unit: int) -> int:
    return -size % unit
