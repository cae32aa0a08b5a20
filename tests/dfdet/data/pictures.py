"""Pictures for the tests of this folder."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image


def picture(seed: int, width: int = 64, height: int = 64) -> np.ndarray:
    """A smooth random RGB picture, [height, width, 3] uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.float32)
    return ((smooth - 128) * 5 + 128).clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray, ext: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    if ext == "webp":
        options.setdefault("lossless", True)
    Image.fromarray(image).save(out, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ext], **options)
    return out.getvalue()
