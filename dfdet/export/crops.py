"""The crops that an export is measured on: of a validation set, or synthetic ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dfdet.data.crops import crop_side
from dfdet.data.index import Index
from dfdet.data.loader import Loader
from dfdet.data.plan import WholePlan
from dfdet.schema import CropRecipe

BATCH = 16
"""Crops scored at once (crops)."""
SYNTHETIC = "synthetic"
SIDE_PX = 256
"""Of synthetic crops where the recipe tells no size (pixels)."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops in memory: a thousand of 224 pixels take 150 MB."""

    name: str
    """Of their set; ``synthetic`` where there was none."""
    fingerprint: str | None
    """Of the set."""
    images: tuple[Pixels, ...]
    """``[s, s, 3]`` RGB each."""
    labels: NDArray[np.int64] | None
    """0 real, 1 fake ``[n]``; None for synthetic ones."""

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
        """Places ``[b]`` and crops of one side ``[b, s, s, 3]``; each crop once."""
        sides = np.array([len(image) for image in self.images])
        for side in np.unique(sides):
            places = np.flatnonzero(sides == side)
            for part in np.split(places, range(BATCH, len(places), BATCH)):
                yield part, np.stack([self.images[place] for place in part])


def from_set(name: str, index: Index, crop_scale: float, most: int) -> Crops:
    """Crops of a set, as evaluation cuts them: all, or ``most`` spread evenly over it.

    Raises:
        ConfigError: ``crop_scale`` is larger than the set's stored scale.
        DamagedSampleError: One cannot be read.
        StorageError: A remote shard cannot be fetched.
    """
    ids = np.unique(np.linspace(0, len(index) - 1, min(most, len(index))).round().astype(np.int64))
    plan = WholePlan(ids[:, None], np.ones((len(ids), 1), bool))
    loader = Loader(
        index,
        crop_scale=crop_scale,
        augment=None,
        seed=0,
        threads=1,
        prefetch=BATCH,
        on_damage="raise",
        max_damaged=0,
    )
    with loader:
        images = tuple(
            batch.images[0, : int(batch.sizes[0]), : int(batch.sizes[0])].numpy().copy()
            for batch in loader.batches(plan, epoch=0, rank=0, world=1)
        )
    return Crops(name, index.digest, images, index.label[ids].astype(np.int64))


def synthetic(crop: CropRecipe, crop_scale: float, count: int) -> Crops:
    """Smooth random pictures of the size that crops of a recipe have; always the same ones."""
    stored = crop.size_px or SIDE_PX
    side = crop_side(stored, stored, crop_scale, crop.scale or np.nan)
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape, np.int16)
        images.append(noisy.clip(0, 255).astype(np.uint8))
    return Crops(SYNTHETIC, None, tuple(images), None)
