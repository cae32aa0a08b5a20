"""Foreign tars in the making, to the byte: also such as no tool would write."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

END = bytes(1024)
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(seed: int, ext: str = "png", size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    """A picture of smooth noise, width by height."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, FORMATS[ext], **options)
    return buffer.getvalue()


def header(name: bytes, length: int, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A ustar header; fields ``size``, ``prefix``, ``magic`` and ``sum`` may be given raw."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = fields.get("size", b"%011o\0" % length)
    block[136:148], block[156:157] = b"00000000000\0", kind
    block[257:265] = fields.get("magic", b"ustar\00000")
    prefix = fields.get("prefix", b"")
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = fields.get("sum", b"%06o\0 " % sum(block))
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """Header and payload of a member."""
    raw = name.encode() if isinstance(name, str) else name
    return header(raw, len(data), kind, **fields) + padded(data)


def pax(**records: bytes) -> bytes:
    """An extended header for the next member."""
    return member("PaxHeaders/x", b"".join(record(key, value) for key, value in records.items()), b"x")


def record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def sample(key: str, label: object, seed: int = 0, ext: str = "png", **facts: object) -> bytes:
    """An image and its JSON."""
    text = json.dumps({"label": label, **facts}).encode()
    return member(f"{key}.{ext}", picture(seed, ext)) + member(f"{key}.json", text)


def write(path: Path, *parts: bytes, end: bytes = END) -> Path:
    """Writes a tar of members."""
    path.write_bytes(b"".join(parts) + end)
    return path


def write_by_tarfile(path: Path, members: dict[str, bytes], format: int) -> Path:
    """Writes a tar as Python's own module does."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
