"""Decodes images to 8-bit RGB and cuts the training crop from the middle of the stored one."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dfdet.data.png import with_stored_pixels
from dfdet.data.reader import DamageError

Pixels = NDArray[Any]
"""uint8 RGB, [H, W, 3] (cv2's stubs know no narrower type)."""

_CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x112
_DECODE_ERRORS = (
    ValueError,
    OSError,
    RuntimeError,
    SyntaxError,
    struct.error,
    cv2.error,
    Image.DecompressionBombError,
)


def decode(data: bytes, into: Pixels | None = None) -> Pixels:
    """Decodes a JPEG, PNG or WebP, told by its first bytes and not by its name.

    Grey is repeated, 16 bits keep the upper 8, alpha is dropped (as ``convert("RGB")`` of Pillow,
    and with it the public preprocessing, does), EXIF orientation is applied, CMYK is converted.
    Equal to Pillow to the bit, but for CMYK (1 level) and 16-bit grey (which Pillow clips).

    Args:
        data: The file's bytes.
        into: Contiguous room for an image of the expected size. The result may lie in it, which saves
            a copy (a tenth of a JPEG's time); it may be scribbled on in any case.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        DamageError: ``decode``: another format, or broken data.
    """
    try:
        image = _decode_stored(data, into)
        if _has_exif(data):
            image = _oriented(image, data)
    except _DECODE_ERRORS as error:
        raise DamageError("decode", f"does not decode: {error}") from error
    return image


def cut_middle(image: Pixels, side: int) -> Pixels:
    """The middle square, as a view [side, side, 3]."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _decode_stored(data: bytes, into: Pixels | None) -> Pixels:
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, into)
    if data[:8] == _PNG:
        data = with_stored_pixels(data)
    elif (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        raise ValueError(f"starts with {data[:8]!r}: no JPEG, PNG or WebP")
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_FLAGS)
    if image is None:
        raise ValueError("broken PNG or WebP")
    return image


def _decode_jpeg(data: bytes, into: Pixels | None) -> Pixels:
    try:
        # The slow DCT and upsampling are Pillow's, so that pixels do not depend on who decodes.
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=into)
    except ValueError:
        # Oddities that libjpeg only warns of; Pillow still refuses truncated data.
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


def _has_exif(data: bytes) -> bool:
    """Whether there is EXIF, by the chunks of the file: a search through all bytes takes 50 microseconds."""
    if data[:8] == _PNG:
        return any(data[place + 4 : place + 8] == b"eXIf" for place in _png_chunks(data))
    if data[:4] == b"RIFF":
        return data[12:16] == b"VP8X" and bool(data[20] & 8)
    return any(data[place + 4 : place + 10] == b"Exif\0\0" for place in _jpeg_segments(data))


def _png_chunks(data: bytes) -> Iterator[int]:
    """Where chunks start."""
    place = len(_PNG)
    while place < len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Where segments start, up to the first scan."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place : place + 2] != b"\xff\xda":
        if data[place : place + 2] == b"\xff\xff":  # padding
            place += 1
            continue
        yield place
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _oriented(image: Pixels, data: bytes) -> Pixels:
    """Applies the EXIF orientation (1 to 8): 5 to 8 exchange rows and columns."""
    with Image.open(io.BytesIO(data)) as header:
        orientation = header.getexif().get(_ORIENTATION_TAG, 1)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
