"""Blur and resize batched on an accelerator, as two matrix products an image.

A filter of one axis is a matrix of weights that are multiples of 2**-22, as in Pillow's integer
arithmetic. In float64 all sums are then exact, in any order: a sample does not depend on its batch, and
the resize equals Pillow's to the bit. On a CPU cv2 and Pillow themselves are at work
(:mod:`dfdet.evaluation.corruptions.corrupt`), which leave out the zeros of the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.evaluation.corruptions.grid import Corruption

Array = NDArray[Any]
"""float64 (which NumPy's stubs lose in arithmetic)."""

_CHUNK = 16
"""Images in work at a time (images)."""
_ONE = 1 << 22
"""Pillow's fixed point of weights."""
_REACH = {"bilinear": 1.0, "bicubic": 2.0, "box": 0.5, "hamming": 1.0, "lanczos": 3.0}
"""Half the width of Pillow's filters (pixels of the smaller image)."""


def filter_batched(images: Tensor, sizes: Tensor, corruption: Corruption) -> Tensor:
    """Blurs or resizes.

    Args:
        images: [b, S, S, 3] uint8; a crop lies in the top left of its buffer.
        sizes: [b] sides of the crops (pixels), best on the CPU: reading others waits for the device.
        corruption: A blur or a resize that is not clean.

    Returns:
        A new [b, T, T, 3] uint8 tensor with T the side of the resize, or S; zeros outside of the crops.
    """
    batches = zip(images.split(_CHUNK), sizes.cpu().split(_CHUNK), strict=True)
    return torch.cat([_filter_chunk(part, sides.tolist(), corruption) for part, sides in batches])


def _filter_chunk(images: Tensor, sides: list[int], corruption: Corruption) -> Tensor:
    """[n, S, S, 3] uint8 as [n, T, T, 3] uint8; along rows first, as Pillow has it."""
    distinct, which = np.unique(sides, return_inverse=True)  # mostly one: a matrix has up to 4 MiB
    matrices = _padded(distinct.tolist(), corruption, images.shape[1]).to(images.device)
    matrices = matrices[torch.from_numpy(which).to(images.device)] if len(distinct) > 1 else matrices
    planes = images.permute(0, 3, 1, 2).double() @ matrices.mT  # [n, 3, S, T]
    if corruption.kind == "resize":
        planes = _to_levels(planes)
    return _to_levels(matrices @ planes).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _padded(sides: list[int], corruption: Corruption, buffer_side: int) -> Tensor:
    """Weights of each crop along an axis, zero where it ends: [n, 1, T, S]."""
    after = int(corruption.level) if corruption.kind == "resize" else buffer_side
    padded = np.zeros((len(sides), 1, after, buffer_side))
    for row, side in enumerate(sides):
        matrix = corruption_matrix(corruption, side)
        padded[row, 0, : len(matrix), :side] = matrix
    return torch.from_numpy(padded)


def corruption_matrix(corruption: Corruption, side: int) -> Array:
    """Weights of a blur or resize along an axis of a crop: [side afterwards, side]."""
    if corruption.kind == "blur":
        return blur_matrix(side, corruption.kernel_px, corruption.level)
    return resize_matrix(side, int(corruption.level), corruption.filter)


@lru_cache(maxsize=32)
def blur_matrix(side: int, kernel_px: int, sigma_px: float) -> Array:
    """Gaussian weights; edges are mirrored about the outermost pixel: [side, side]."""
    weights: Any = cv2.getGaussianKernel(kernel_px, sigma_px)[:, 0]
    places = np.arange(side)[:, None] + np.arange(kernel_px) - kernel_px // 2  # [side, kernel]
    last = max(side - 1, 1)
    places = np.abs(places) % (2 * last)
    places = np.minimum(np.minimum(places, 2 * last - places), side - 1)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), np.rint(weights * _ONE) / _ONE)
    return matrix


@lru_cache(maxsize=32)
def resize_matrix(side: int, target: int, filter_name: str) -> Array:
    """Pillow's weights of a resize, 22 bits of them: [target, side]."""
    step = side / target
    if filter_name == "nearest":
        # Pillow adds up steps, so that rounding errors add up too.
        nearest = np.cumsum([step / 2, *[step] * (target - 1)]).astype(np.int64)
        return np.eye(side)[np.minimum(nearest, side - 1)]
    widening = max(step, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * step
    places, reach = np.arange(side)[None], _REACH[filter_name] * widening
    first = np.trunc(centres - reach + 0.5).clip(0)
    end = np.trunc(centres + reach + 0.5).clip(max=side)
    within = (places >= first) & (places < end)
    weights = np.where(within, _RESPONSES[filter_name]((places - centres + 0.5) / widening), 0.0)
    weights = weights / np.cumsum(weights, axis=1)[:, -1:]
    return np.trunc(weights * _ONE + np.copysign(0.5, weights)) / _ONE


def _to_levels(values: Tensor) -> Tensor:
    """Whole values of 0 to 255, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _box(x: Array) -> Array:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _bilinear(x: Array) -> Array:
    return (1 - np.abs(x)).clip(0)


def _bicubic(x: Array, a: float = -0.5) -> Array:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _windowed(x: Array, reach: float, window: Callable[[Array], Array]) -> Array:
    return np.where(np.abs(x) < reach, np.sinc(x) * window(x), 0.0)


def _hamming(x: Array) -> Array:
    # Pillow writes these two in single precision, which moves the last bit of some weights.
    return float(np.float32(0.54)) + float(np.float32(0.46)) * np.cos(np.pi * x)


_RESPONSES: dict[str, Callable[[Array], Array]] = {
    "box": _box,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "hamming": partial(_windowed, reach=1.0, window=_hamming),
    "lanczos": partial(_windowed, reach=3.0, window=lambda x: np.sinc(x / 3)),
}
"""Weights at distances x from the middle (pixels of the smaller image)."""
