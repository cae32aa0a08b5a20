"""The images of a tar, perhaps gzipped: read in one sweep, nothing unpacked, no name used as a path."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from shards.listing import SUFFIXES
from shards.media.decode import MAX_FILE_BYTES, UnusableImageError
from shards.media.stream import UnusableVideoError, open_regular

MAX_MEMBERS = 500_000
"""The largest archives of WildDeepfake hold some thousand."""
MAX_UNPACKED_BYTES = 8 << 30
MAX_WAITING_BYTES = 1 << 30
"""Images held that lie in the archive before others that are to be given first."""

_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError)

Content = bytes | UnusableImageError


class ImageArchive:
    """Image files of an archive, by their place in it; links are not followed.

    Args:
        path: A regular file, or a link to one.

    Raises:
        UnusableVideoError: The file is unreadable, no archive, without images, or beyond the bounds.
    """

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        """Where the archive breaks off, if it does."""
        self._file = open_regular(path)
        try:
            self.names = dict(self._listed())
            """Name of each image by its place."""
            if not self.names:
                raise UnusableVideoError("has no images" + (f" ({self.problem})" if self.problem else ""))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def contents(self, places: Sequence[int]) -> Iterator[tuple[int, Content]]:
        """Place and bytes of images, in the order asked for; what is cut short has its reason instead."""
        order, asked = deque(places), frozenset(places)
        waiting: dict[int, Content] = {}
        room = MAX_WAITING_BYTES
        for place, tar, member in self._members():
            if place in asked:
                waiting[place] = _read(tar, member, room)
                room -= _size(waiting[place])
            while order and order[0] in waiting:
                content = waiting.pop(order[0])
                room += _size(content)
                yield order.popleft(), content
            if not order:
                return
        for place in order:
            yield place, waiting.get(place, UnusableImageError(self.problem or "is not in the archive"))

    def _listed(self) -> Iterator[tuple[int, str]]:
        for place, _, member in self._members():
            if place >= MAX_MEMBERS:
                raise UnusableVideoError(f"has over {MAX_MEMBERS} members")
            name = PurePosixPath(member.name)
            is_plain = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse()
            if is_plain and name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
                yield place, member.name

    def _members(self) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
        """Place and head of every member, to the end or to where the archive is broken."""
        self._file.seek(0)
        is_packed = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        plain = gzip.GzipFile(fileobj=self._file) if is_packed else self._file
        place = 0
        try:
            with tarfile.open(fileobj=_Bounded(plain), mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # Else it keeps them all.
                    yield place, tar, member
                    place += 1
        except _BROKEN as error:
            self.problem = f"archive breaks off: {' '.join(str(error).split())[:200]}"


class _Bounded:
    """What tarfile needs of a file, within bounds: a small file can unpack to terabytes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise UnusableVideoError(f"has a member or header of over {MAX_FILE_BYTES >> 20} MiB")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        if offset > MAX_UNPACKED_BYTES:
            raise UnusableVideoError(f"unpacks to over {MAX_UNPACKED_BYTES >> 20} MiB")
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, room: int) -> Content:
    if member.size > min(MAX_FILE_BYTES, room):
        return UnusableImageError(f"member of {member.size >> 20} MiB is too large")
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except _BROKEN:
        data = b""
    return data if data and len(data) == member.size else UnusableImageError("is cut short in the archive")


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else 0
