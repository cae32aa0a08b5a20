"""Walks a tar in one pass from its first byte to its last, and believes nothing that is not proved.

``tarfile`` (and ``webdataset``, which reads through it) takes a damaged header after the first one, a
header cut short, and a missing end for the end of the archive: the members behind are lost without a
word. Here each of them is an error that names the byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MAX_NAME_BYTES = 4096
MAX_EXTENDED_BYTES = 1 << 20
"""Longest extended header; a name or a PAX record is far shorter."""

_CHUNK = 1 << 20
_END = bytes(2 * BLOCK)
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}
_FILES, _EMPTY = b"0\x007", b"123456V"  # Links, devices, folders and volume names have no payload.
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"xX", b"g", b"S"
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ")


class TarError(Exception):
    """A tar that cannot be trusted; the text says what is wrong, and at which byte."""


class Member(NamedTuple):
    """A member: its name as in the header, and where its payload lies (bytes)."""

    name: bytes
    is_file: bool
    """Links, devices and folders are not; they have no payload."""
    offset: int
    size: int


class TarStream:
    """Reads a file once, in order, and takes the checksum of all of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.offset = 0
        """Bytes read so far."""
        self._file = file
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Checksum of what was read so far (hex)."""
        return self._sha256.hexdigest()

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end of the file."""
        parts = []
        while size > 0 and (part := self._file.read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
            self.offset += len(part)
            self._sha256.update(part)
        return b"".join(parts)

    def take(self, size: int, what: str) -> bytes:
        """The next bytes, all of them.

        Raises:
            TarError: The file ends before.
        """
        start = self.offset
        data = self.read(size)
        if len(data) != size:
            raise TarError(f"is cut off at byte {self.offset}, inside {what} (byte {start})")
        return data

    def skip(self, size: int, what: str) -> None:
        """Passes over bytes.

        Raises:
            TarError: The file ends before.
        """
        for left in range(size, 0, -_CHUNK):
            self.take(min(left, _CHUNK), what)


def members(stream: TarStream) -> Iterator[Member]:
    """Members in the order of the tar; the payload of each may be taken before the next is asked for.

    ustar, PAX, GNU and version 7 headers. Names are bytes and nothing more: never used as a path.

    Raises:
        TarError: The tar is compressed, cut off or damaged, lacks its end, holds more behind its end,
            or has a member whose bytes do not lie in it plainly (sparse, of several volumes).
    """
    extended: dict[bytes, bytes] = {}
    while True:
        start = stream.offset
        header = stream.read(BLOCK)
        if not start:
            _refuse_packed(header)
        if len(header) != BLOCK:
            raise TarError(f"is cut off at byte {stream.offset}: no end of archive")
        if not any(header):
            if extended:
                raise TarError(f"has an extended header without a member (before byte {start})")
            return _check_end(stream)
        _check_sum(header, start)
        kind, size = header[156:157], _number(header[124:136], start)
        if kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
            extended |= _extended(stream, kind, size, start)
            continue
        size = _pax_size(extended, size, start)
        member = Member(_name(header, extended, start), _is_file(kind, size, start), stream.offset, size)
        extended = {}
        yield member
        padded = member.offset + size + -size % BLOCK
        stream.skip(padded - stream.offset, f"member {printable(member.name)!r}")


def printable(name: bytes) -> str:
    """A member's name as text: bytes that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")


def _refuse_packed(head: bytes) -> None:
    if not head:
        raise TarError("is empty")
    for magic, (name, tool) in _PACKED.items():
        if head.startswith(magic):
            raise TarError(f"is compressed ({name}): images in it cannot be read by offset; run {tool} on it")


def _check_end(stream: TarStream) -> None:
    """The second zero block, then nothing but zeros."""
    start = stream.offset
    second = stream.read(BLOCK)
    if second != _END[:BLOCK]:
        found = "a damaged header" if any(second) else "the end of the file"
        raise TarError(f"has a lone zero block and then {found} at byte {start}: damaged or cut off")
    while block := stream.read(_CHUNK):
        if any(block):
            raise TarError(f"goes on after its end (byte {start + BLOCK}): tars put together, or damage")
    if stream.offset % BLOCK:
        raise TarError(f"has {stream.offset} bytes, no multiple of {BLOCK}: cut off in its last record")


def _check_sum(header: bytes, start: int) -> None:
    told = _number(header[148:156], start)
    bare = header[:148] + b" " * 8 + header[156:]
    # Some old writers summed signed bytes.
    if told not in (sum(bare), sum(bare) - 256 * sum(byte > 127 for byte in bare)):
        raise TarError(f"has a damaged header at byte {start} (its checksum is wrong)")


def _number(field: bytes, start: int) -> int:
    """An octal number, or a positive one in base 256."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    text = field.rstrip(b" \0").lstrip(b" ")
    if re.fullmatch(rb"[0-7]*", text) is None:
        raise TarError(f"has a damaged header at byte {start} ({field!r} is no number)")
    return int(text or b"0", 8)


def _is_file(kind: bytes, size: int, start: int) -> bool:
    if kind in _FILES:
        return True
    if kind == _SPARSE:
        raise TarError(f"has a sparse member at byte {start}: its bytes do not lie as they are; pack it anew")
    if kind not in _EMPTY or size:
        raise TarError(f"has a member of type {kind!r} and {size} bytes at byte {start}; pack it anew")
    return False


def _name(header: bytes, extended: dict[bytes, bytes], start: int) -> bytes:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU's magic is another, and times stand there.
        name = header[345:500].split(b"\0")[0] + b"/" + name
    name = extended.get(b"path", name)
    if not name or len(name) > MAX_NAME_BYTES:
        raise TarError(f"has a member with a name of {len(name)} bytes at byte {start}")
    return name


def _extended(stream: TarStream, kind: bytes, size: int, start: int) -> dict[bytes, bytes]:
    """What an extended header says of the next member, by the names of PAX."""
    if size > MAX_EXTENDED_BYTES:
        raise TarError(f"has an extended header of {size} bytes at byte {start}")
    data = stream.take(size, "an extended header")
    stream.skip(-size % BLOCK, "an extended header")
    if kind == _LONG_LINK:
        return {}
    if kind == _LONG_NAME:
        return {b"path": data.split(b"\0")[0]}
    records = _pax_records(data, start)
    if any(name.startswith(b"GNU.sparse.") for name in records):
        raise TarError(f"has a sparse member at byte {start}: its bytes do not lie as they are; pack it anew")
    if kind == _PAX_GLOBAL and (b"path" in records or b"size" in records):
        raise TarError(f"has a global header with a name or size for all members at byte {start}")
    return {} if kind == _PAX_GLOBAL else records


def _pax_records(data: bytes, start: int) -> dict[bytes, bytes]:
    """Records ``LENGTH NAME=VALUE`` and a line's end, which must fill the header."""
    records, position = {}, 0
    while position < len(data):
        length = _PAX_RECORD.match(data, position)
        record = data[position : position + int(length[1])] if length else b""
        name, equals, value = record[len(length[0]) :].partition(b"=") if length else (b"", b"", b"")
        if not length or len(record) != int(length[1]) or not name or not equals or value[-1:] != b"\n":
            raise TarError(f"has a damaged extended header at byte {start}")
        records[name] = value[:-1]
        position += len(record)
    return records


def _pax_size(extended: dict[bytes, bytes], size: int, start: int) -> int:
    text = extended.get(b"size")
    if text is None:
        return size
    if re.fullmatch(rb"[0-9]{1,18}", text) is None:
        raise TarError(f"has a damaged extended header before byte {start} (size {text[:40]!r})")
    return int(text)
