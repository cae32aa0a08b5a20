"""Small shard sets, built by the real writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter
from tests.dfdet.data.pictures import encode, picture

WIDE = CropRecipe(template="demo", scale=1.6, size_px=64, detector="none 0", selection="largest")
MakeSet = Callable[..., Path]


@pytest.fixture(scope="session")
def make_set() -> MakeSet:
    """Writes a set of groups with one real video and some fakes each; returns its manifest."""

    def make(
        folder: Path,
        name: str = "demo",
        *,
        dataset: str = "demo",
        groups: int = 4,
        frames: int = 3,
        methods: tuple[str, ...] = ("A", "B"),
        crop: CropRecipe = WIDE,
        exts: tuple[str, ...] = ("png", "jpg", "webp"),
        shape: tuple[int, int] = (64, 64),
        level: str = "exact",
        max_shard_bytes: int = 100_000,
    ) -> Path:
        writer = ShardWriter(
            folder, name, dataset=dataset, split="all", crop=crop, max_shard_bytes=max_shard_bytes
        )
        with writer:
            for group in range(groups):
                writer.add_group(
                    _item(dataset, source, group, frame, crop, exts, shape, level)
                    for source in ("real", *methods)
                    for frame in range(frames)
                )
        return folder / f"{name}.json"

    return make


def _item(
    dataset: str,
    source: str,
    group: int,
    frame: int,
    crop: CropRecipe,
    exts: tuple[str, ...],
    shape: tuple[int, int],
    level: str,
) -> tuple[Sample, str, bytes, int, int]:
    width, height = shape
    ext = exts[(group + frame) % len(exts)]
    sample = Sample(
        dataset=dataset,
        source=source,
        label=0 if source == "real" else 1,
        video=f"v{group}.{source}",
        frame=frame,
        group=None if level == "none" else f"{dataset}/v{group}",
        group_level=level,
        identity=f"id{group // 2}" if group < 2 else None,
        crop=crop,
    )
    seed = hash((group, frame, len(source), source[0] == "B")) % 2**32
    return sample, ext, encode(picture(seed, width, height), ext), width, height
