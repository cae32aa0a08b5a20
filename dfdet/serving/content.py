"""What a file is by its first bytes, and how large an image becomes, before any decoder sees it.

Decoders reserve memory for what a header promises, some while they open a file: 2 GB for a WebP of a few
hundred bytes. So the promise is read here, without them.
"""

from __future__ import annotations

import struct
from typing import Literal

from dfdet.serving.refused import RefusedError

Kind = Literal["image", "video"]

KNOWN = "JPEG, PNG, WebP, MP4, MOV, Matroska, WebM, AVI"
MAX_DECLARED_PIXELS = 1 << 62

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that start a frame (SOF0 to SOF15), of which three mean other things."""
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers without a length."""


def kind_of(data: bytes) -> Kind:
    """Whether a file is an image or a video, by its content.

    Raises:
        RefusedError: 415, of no type that is known here.
    """
    if _is_jpeg(data) or data[:8] == _PNG or _is_webp(data):
        return "image"
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "video"
    if data[:4] == b"\x1a\x45\xdf\xa3" or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return "video"
    raise RefusedError(415, "unknown_type", f"the file is of no type that is known here: {KNOWN}")


def check_image(data: bytes, max_pixels: int) -> None:
    """Refuses an image whose header promises too much.

    Raises:
        RefusedError: 413 too many pixels, 400 no size can be read, or it is an animation.
    """
    try:
        width, height = image_size(data)
    except (struct.error, ValueError, IndexError) as error:
        raise RefusedError(400, "undecodable", "the image has no readable header") from error
    if width * height > max_pixels:
        raise RefusedError(
            413,
            "too_many_pixels",
            f"the image has {width}x{height} px; at most {max_pixels} pixels are taken",
        )


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height (pixels) that the header of a JPEG, PNG or WebP promises; the largest of several.

    Raises:
        ValueError, IndexError, struct.error: The header is broken.
    """
    if data[:8] == _PNG:
        return _png_size(data)
    return _webp_size(data) if _is_webp(data) else _jpeg_size(data)


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _is_webp(data: bytes) -> bool:
    return (data[:4], data[8:12]) == (b"RIFF", b"WEBP")


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("the first chunk is no IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    sizes = []
    place = 2
    while place < len(data):
        if data[place] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[place + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):  # the first scan, or the end
            break
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            sizes.append((width, height))
        place += 2 + max(2, struct.unpack_from(">H", data, place + 2)[0])
    if not sizes:
        raise ValueError("no frame before the first scan")
    return max(sizes, key=lambda size: size[0] * size[1])


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        canvas = data[24:30]
        if len(canvas) < 6:
            raise ValueError("the canvas is cut short")
        return 1 + int.from_bytes(canvas[:3], "little"), 1 + int.from_bytes(canvas[3:], "little")
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no image chunk first")
