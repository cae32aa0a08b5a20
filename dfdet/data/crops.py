"""How much of a stored crop is cut: any scale up to the stored one, without cropping faces anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfdet.data.index import Index
from dfdet.errors import ConfigError


def crop_side(width: int, height: int, crop_scale: float, stored_scale: float) -> int:
    """Side of the square to cut (pixels): the shorter side where the stored scale is unknown (NaN)."""
    short = min(width, height)
    if np.isnan(stored_scale):
        return short
    return max(1, min(short, int(short * crop_scale / stored_scale + 0.5)))


def crop_sides(index: Index, crop_scale: float) -> NDArray[np.int64]:
    """Side of each sample's cut (pixels), computed once for each distinct size: [n]."""
    shape: Any = np.stack([index.width, index.height, index.shard], axis=1)
    shape[:, 2] = np.unique(index.shard_scale, return_inverse=True, equal_nan=True)[1][index.shard]
    scales = np.unique(index.shard_scale, equal_nan=True)
    distinct, which = np.unique(shape, axis=0, return_inverse=True)
    sides = [crop_side(w, h, crop_scale, float(scales[s])) for w, h, s in distinct.tolist()]
    return np.array(sides, np.int64)[which.reshape(-1)]


def widest_crop(index: Index) -> float:
    """Largest scale that can be cut from every shard; infinite where no stored scale is known."""
    known = index.shard_scale[~np.isnan(index.shard_scale)]
    return float(known.min(initial=np.inf))


def check_crop_scale(index: Index, crop_scale: float) -> None:
    """Checks that crops of a scale can be cut from what is stored.

    Raises:
        ConfigError: The scale is larger than a set's stored scale.
    """
    widest = widest_crop(index)
    if crop_scale > widest + 1e-9:
        shard = index.shards[int(np.nanargmin(index.shard_scale))]
        raise ConfigError(
            f"data.crop_scale={crop_scale}: larger than the stored crop scale {widest} of {shard.name};"
            f" set --data.crop_scale {widest} or smaller, or build wider crops"
        )
