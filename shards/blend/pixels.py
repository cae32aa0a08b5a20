"""Images between 8-bit and float: [H, W, 3], RGB, float32 from 0 to 1."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def to_float(image: Array) -> Array:
    """uint8 as float32 from 0 to 1."""
    return image.astype(np.float32) / 255


def to_bytes(image: Array) -> Array:
    """Rounded to uint8."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def recompress(image: Array, quality: int) -> Array:
    """Through JPEG and back."""
    _, data = cv2.imencode(".jpg", to_bytes(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return to_float(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])
