"""Gaussian noise that belongs to a sample: the same in any batch, on any rank and device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.data.hashing import chain

_STREAM = 0x6E6F6973  # keeps these draws apart from all other uses of the seed
_ROW = 1 << 20
"""Words of a row: more than any side, so that a pixel's word depends on its place alone."""
_BITS = 16
"""Of a draw: a word of 64 has one for each channel."""
_CHUNK = 16
"""Images in work at a time (images)."""


def add_noise(images: Tensor, sizes: Tensor, sigma: float, ids: NDArray[np.int64], seed: int) -> Tensor:
    """Adds noise, clamps and rounds.

    A sample's noise comes from its id, the seed and the place in the crop, and is scaled by sigma: the
    levels of a curve differ by their strength only. Each value is a normal quantile that 16 bits of a
    hash choose, from a table made on the CPU, and one float32 sum: equal on all devices.

    Args:
        images: [b, S, S, 3] uint8; a crop lies in the top left of its buffer.
        sizes: [b] sides of the crops (pixels).
        sigma: Standard deviation, of the range 0 to 1.
        ids: [b] sample ids.
        seed: Seed of the noise.

    Returns:
        A new [b, S, S, 3] uint8 tensor, with zeros outside of the crops.
    """
    device = images.device
    levels = (_quantiles() * (255 * sigma)).float().to(device)
    states = torch.from_numpy(chain(seed, _STREAM, ids).view(np.int64)).to(device)
    places = torch.arange(images.shape[1], device=device)
    chunks = zip(images.split(_CHUNK), states.split(_CHUNK), sizes.to(device).split(_CHUNK), strict=True)
    return torch.cat([_noisy(part, state, side, levels, places) for part, state, side in chunks])


def _noisy(images: Tensor, states: Tensor, sides: Tensor, levels: Tensor, places: Tensor) -> Tensor:
    """[n, S, S, 3] of hash states [n], sides [n], noise by draw [2**16] and places 0 to S - 1."""
    words = splitmix64(
        states[:, None, None] + (places[:, None] * _ROW + places) * _signed(0x9E3779B97F4A7C15)
    )
    draws = [(words >> (channel * _BITS)) & ((1 << _BITS) - 1) for channel in range(3)]
    values = torch.stack([levels[draw] for draw in draws], dim=-1).add_(images)
    inside = places < sides[:, None]  # [n, S]
    inside = inside[:, :, None, None] & inside[:, None, :, None]
    return values.round_().clamp_(0, 255).mul_(inside).to(torch.uint8)


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """Middle quantiles of the standard normal distribution in 2**16 equal parts, float64."""
    count = 1 << _BITS
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def splitmix64(values: Tensor) -> Tensor:
    """:func:`dfdet.data.hashing.splitmix64` on the bits of an int64 tensor, whose products wrap."""
    z = values + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Right, with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64)
