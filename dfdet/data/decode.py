"""Decodes images to 8-bit RGB and cuts the training crop from the middle of the stored one."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from dfdet.data.reader import DamageError

Pixels = NDArray[Any]
"""uint8 RGB, [H, W, 3] (cv2's stubs know no narrower type)."""

_CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_EXIF_MARKS = (b"Exif\0\0", b"eXIf", b"EXIF")
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


def decode(data: bytes) -> Pixels:
    """Decodes a JPEG, PNG or WebP, told by its first bytes and not by its name.

    Grey is repeated, 16 bits keep the upper 8, alpha is dropped (as ``convert("RGB")`` of Pillow,
    and with it the public preprocessing, does), EXIF orientation is applied, CMYK is converted.
    Equal to Pillow to the bit, but for CMYK (1 level) and 16-bit grey (which Pillow clips).

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        DamageError: ``decode``: another format, or broken data.
    """
    try:
        image = _decode_stored(data)
        if any(mark in data for mark in _EXIF_MARKS):
            image = _oriented(image, data)
    except _DECODE_ERRORS as error:
        raise DamageError("decode", f"does not decode: {error}") from error
    return image


def crop_side(width: int, height: int, crop_scale: float, stored_scale: float) -> int:
    """Side of the square to cut (pixels): the shorter side where the stored scale is unknown (NaN)."""
    short = min(width, height)
    if np.isnan(stored_scale):
        return short
    return max(1, min(short, int(short * crop_scale / stored_scale + 0.5)))


def cut_middle(image: Pixels, side: int) -> Pixels:
    """The middle square, as a view [side, side, 3]."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _decode_stored(data: bytes) -> Pixels:
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data)
    if data[:8] != b"\x89PNG\r\n\x1a\n" and (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        raise ValueError(f"starts with {data[:8]!r}: no JPEG, PNG or WebP")
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_FLAGS)
    if image is None:
        raise ValueError("broken PNG or WebP")
    return image


def _decode_jpeg(data: bytes) -> Pixels:
    try:
        # The slow DCT and upsampling are Pillow's, so that pixels do not depend on who decodes.
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        # Oddities that libjpeg only warns of; Pillow still refuses truncated data.
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


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
