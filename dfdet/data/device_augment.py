"""The augmentation of :mod:`dfdet.data.augment` without its JPEG step, batched on the device.

Each sample has its own numbers, and the arithmetic is that of cv2 on the threads: its fixed-point blur
weights and grey values, and float32 sums of whole numbers below 2**24, which no order of summation
changes. So pixels equal those of the threads but for ties of the nearest neighbour (1 value in 10,000,
measured), whatever the batch and the rank; on a CPU the threads take a 25th of the time.
Batched torchvision transforms would draw once a batch. The host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.data.augment import BLUR_KERNEL_PX, Parameters, affine_matrix

if TYPE_CHECKING:
    from dfdet.data.loader import Batch

_FAR = -1e6
"""A coordinate outside of any crop."""
_BLUR_ONE = 256
"""cv2's fixed point of blur weights."""
_GREY_WEIGHTS, _GREY_ONE = (9798.0, 19235.0, 3735.0), 32768
"""cv2's fixed point of ITU-R BT.601 luma."""


def finish(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch's images to the device and does there what the loader left to it, if anything."""
    if batch.rest is None:
        return batch
    images = batch.images.to(device, non_blocking=True)
    return replace(batch, images=apply_batched(images, batch.sizes, batch.rest), rest=None)


def apply_batched(images: Tensor, sizes: Tensor, parameters: Sequence[Parameters]) -> Tensor:
    """Flip, affine, blur and jitter.

    Args:
        images: [b, S, S, 3] uint8 RGB on the device; a crop lies in the top left of its buffer.
        sizes: [b] sides of the crops (pixels), on the CPU.
        parameters: What is done to each, b of them.

    Returns:
        A new [b, S, S, 3] uint8 tensor, with zeros outside of the crops.
    """
    sides = sizes.numpy()
    images = _moved(images, sides, parameters)
    images = _blurred(images, sides, parameters)
    return _jittered(images, sides, parameters)


def _moved(images: Tensor, sides: NDArray[np.int64], parameters: Sequence[Parameters]) -> Tensor:
    """Flip and affine as one gather of pixels; black where nothing comes from inside the crop."""
    b, s = images.shape[:2]
    terms = torch.from_numpy(_source_terms(sides, parameters, s)).to(images.device, non_blocking=True)
    # A place is a term of its column plus a term of its row: one rounding, alike on all devices.
    x, y = (terms[axis, 0, :, None, :].add(terms[axis, 1, :, :, None]).round_() for axis in (0, 1))
    side = _column(sides.tolist(), images.device)
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    x = torch.where(_column([p.flip for p in parameters], images.device), side - 1 - x, x)
    first = torch.arange(b, device=images.device)[:, None, None] * (s * s)
    sources = torch.where(inside, (y * s + x).long(), 0).add_(first)
    moved = images.reshape(-1, 3).index_select(0, sources.flatten()).view(b, s, s, 3)
    return moved.mul_(inside[..., None])


def _source_terms(
    sides: NDArray[np.int64], parameters: Sequence[Parameters], buffer_side: int
) -> NDArray[np.float32]:
    """Terms of the place that a pixel comes from: [x or y, column or row, b, S]."""
    places = np.arange(buffer_side)
    forward = [affine_matrix(p, int(side)) for p, side in zip(parameters, sides, strict=True)]
    matrix: Any = np.stack([cv2.invertAffineTransform(item) for item in forward])  # [b, 2, 3]
    of_columns = matrix[:, :, :1] * places
    of_rows = matrix[:, :, 1:2] * places + matrix[:, :, 2:]
    terms = np.stack([of_columns, of_rows]).transpose(2, 0, 1, 3).astype(np.float32)
    terms[0, :, places[None] >= sides[:, None]] = _FAR
    return terms


def _blurred(images: Tensor, sides: NDArray[np.int64], parameters: Sequence[Parameters]) -> Tensor:
    """Gaussian blur of the rows that have one, in place; edges are mirrored about the outermost pixel."""
    rows = [row for row, p in enumerate(parameters) if p.sigma_px > 0]
    if not rows:
        return images
    device = images.device
    weights = torch.from_numpy(np.stack([blur_weights(parameters[row].sigma_px) for row in rows]))
    mirror = torch.from_numpy(_mirrored(sides[rows], images.shape[1]))  # [n, S + 6]
    weights, mirror, chosen = (
        tensor.to(device, non_blocking=True) for tensor in (weights, mirror, torch.tensor(rows))
    )
    values = images[chosen].float()
    values = _weighted(values.take_along_dim(mirror[:, None, :, None], 2), weights, 2)
    values = _weighted(values.take_along_dim(mirror[:, :, None, None], 1), weights, 1)
    # At most 255 * 2**16 + 2**15 < 2**24: exact.
    values = values.add_(_BLUR_ONE**2 / 2).div_(_BLUR_ONE**2).floor_()
    images[chosen] = values.to(torch.uint8)
    return images


def blur_weights(sigma_px: float) -> NDArray[np.float32]:
    """cv2's blur weights, in 1/256: a rounding error goes on to the next, the middle takes the rest."""
    exact: Any = cv2.getGaussianKernel(BLUR_KERNEL_PX, sigma_px)[:, 0] * _BLUR_ONE
    middle = BLUR_KERNEL_PX // 2
    weights, error = np.zeros(BLUR_KERNEL_PX, np.float32), 0.0
    for place in range(middle):
        weights[place] = weights[-1 - place] = np.rint(exact[place] + error)
        error += exact[place] - float(weights[place])
    weights[middle] = _BLUR_ONE - weights.sum()
    return weights


def _mirrored(sides: NDArray[np.int64], buffer_side: int) -> NDArray[np.int64]:
    """Places to read for a buffer's places and half a kernel around them: [n, S + 6]."""
    half = BLUR_KERNEL_PX // 2
    places = np.abs(np.arange(-half, buffer_side + half))[None]
    last = sides[:, None] - 1
    places = places % np.maximum(2 * last, 1)
    return np.minimum(places, 2 * last - places).clip(0)


def _weighted(padded: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Sums along a dimension, that gets shorter by the kernel's reach: [n, S, S, 3] of whole numbers."""
    length = padded.shape[dim] - BLUR_KERNEL_PX + 1
    parts = [
        padded.narrow(dim, tap, length) * weights[:, tap, None, None, None] for tap in range(BLUR_KERNEL_PX)
    ]
    return torch.stack(parts).sum(0)


def _jittered(images: Tensor, sides: NDArray[np.int64], parameters: Sequence[Parameters]) -> Tensor:
    """Brightness and contrast, in each sample's order."""
    device = images.device
    place, side = torch.arange(images.shape[1], device=device), _column(sides.tolist(), device)
    inside = ((place < side) & (place[:, None] < side))[..., None]
    brightness = _column([p.brightness for p in parameters], device)
    contrast = _column([p.contrast for p in parameters], device)
    contrast_first = _column([p.contrast_first for p in parameters], device)
    for contrast_now in (contrast_first, ~contrast_first):
        factor = torch.where(contrast_now, contrast, brightness)
        grey = _mean_grey(images, inside, side)
        offset = torch.where(contrast_now, (1 - factor) * grey, 0.0)
        values = images.float().mul_(factor[..., None].float()).add_(offset[..., None].float())
        images = values.round_().clamp_(0, 255).mul_(inside).to(torch.uint8)
    return images


def _mean_grey(images: Tensor, inside: Tensor, side: Tensor) -> Tensor:
    """Mean of the rounded grey values of each crop, [b, 1, 1] float64."""
    weights = torch.tensor(_GREY_WEIGHTS, device=images.device)
    # Not a matrix product, which an accelerator may compute in TF32.
    grey = (images.float() * weights).sum(3).add_(_GREY_ONE / 2).div_(_GREY_ONE).floor_()
    return (grey * inside[..., 0]).sum((1, 2), keepdim=True, dtype=torch.float64) / side**2


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """A value of each sample, to be combined with its pixels: [b, 1, 1]; numbers as float64."""
    kind = {bool: torch.bool, int: torch.int64}.get(type(values[0]), torch.float64)
    return torch.tensor(values, dtype=kind)[:, None, None].to(device, non_blocking=True)
