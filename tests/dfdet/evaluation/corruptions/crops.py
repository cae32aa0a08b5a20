"""Batches of crops for the tests of this folder."""

from __future__ import annotations

import io

import cv2
import numpy as np
import torch
from PIL import Image

from tests.dfdet.data.pictures import picture


def crop(seed: int, side: int) -> np.ndarray:
    """Smooth noise with sharp edges and a little grain, [side, side, 3] uint8."""
    image = np.ascontiguousarray(picture(seed, side, side))
    third = max(1, side // 3)
    cv2.rectangle(image, (third, third), (2 * third, 2 * third), (230, 180, 20), -1)
    grain = np.random.default_rng(seed).integers(-6, 7, image.shape)
    return (image.astype(int) + grain).clip(0, 255).astype(np.uint8)


def batch(sides: list[int], room: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [b, S, S, 3] with S the largest side and ``room``, and sizes [b]."""
    buffer = max(sides) + room
    images = torch.zeros(len(sides), buffer, buffer, 3, dtype=torch.uint8)
    for row, side in enumerate(sides):
        images[row, :side, :side] = torch.from_numpy(crop(row, side))
    return images, torch.tensor(sides)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Saved and opened by Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
