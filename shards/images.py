"""Ready face images -> shard sets for training, validation and test.

For faces that are cut already: a detector for videos and whole photographs is not run here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dfdet.errors import InputError
from dfdet.schema import CropRecipe, Failure, Manifest, Sample, Split
from shards.listing import SPLITS, Listed, draw_split, list_csv, list_folders
from shards.media.decode import Stored, StoreFormat, UnusableImageError, probe_size, store_image
from shards.ordered import in_order
from shards.progress import Progress
from shards.sets.write import Item, ShardWriter, publish

_log = logging.getLogger(__name__)


class ImageSets(BaseModel):
    """Turn folders of ready face images into the sets NAME-train, NAME-val and NAME-test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: Path
    """Folder for the sets."""
    real: tuple[Path, ...] = ()
    """Folders of real faces; sub-folders are searched, symbolic links not followed."""
    fake: tuple[Path, ...] = ()
    """Folders of fakes, one method each."""
    labels: Path | None = None
    """CSV instead of folders: columns file, label (real, fake, 0, 1) and, where known, method, group,
    identity, video, split."""
    methods: tuple[str, ...] = ()
    """Names of the methods, in the order of the fake folders; else the folders' names."""
    paired: bool = False
    """Files of equal path below their folders (a real and its fakes) share a group."""
    name: str = "images"
    """Name of the sets."""
    dataset: str | None = None
    """Name of the dataset in keys; else the sets' name."""
    scale: float | None = Field(None, ge=1.0, le=4.0)
    """Margin of the images, as a multiple of the tight face; unknown: training uses them whole."""
    format: StoreFormat = "keep"
    """keep: plain 8-bit RGB jpg, png, webp as they are, others as lossless webp. Else all alike."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality of --format jpg (1 to 100)."""
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test (sum 1); a hash of a file's path below its folder chooses."""
    seed: int = 0
    """Seed of that hash."""
    max_shard_mib: int = Field(64, ge=1)
    """Size of a tar (MiB)."""

    @model_validator(mode="after")
    def _consistent(self) -> ImageSets:  # No ValueError: pydantic would wrap it in many lines.
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            raise InputError(f"--split {self.split}: give three shares from 0 that sum to 1, as .7 .15 .15")
        if (self.labels is None) != bool(self.real or self.fake):
            raise InputError("give either folders (--real and --fake) or a table (--labels)")
        if self.labels is not None and (self.methods or self.paired):
            raise InputError("--methods and --paired are for folders; a table has columns method and group")
        return self


@dataclass(frozen=True)
class MadeSet:
    """A finished set and where its manifest lies."""

    path: Path
    manifest: Manifest


def make_sets(config: ImageSets, *, written_by: str = "", progress: Progress | None = None) -> list[MadeSet]:
    """Writes the sets; they appear together, and former sets of that name go.

    An image that cannot be used is recorded in the manifest as a failure, with the reason.

    Args:
        config: Folders and how to write them.
        written_by: Program, version and arguments for the manifests.
        progress: Called after each image.

    Raises:
        InputError: Nothing to write, overlapping folders, a split that would be empty.
        ShardSetError: No image of a split can be used, or the folder cannot be written.
    """
    listed = _assign_splits(_listed(config), config)
    crop = CropRecipe(scale=config.scale, size_px=_common_side(item.path for item in listed))
    samples = [_sample(item, config, crop) for item in listed]
    writers: dict[Split, ShardWriter] = {}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Recorded as failures.
        for split in sorted({sample.split for sample in samples}, key=SPLITS.index):
            writers[split] = stack.enter_context(_writer(config, split, crop, written_by))
        _write(writers, listed, samples, config, progress or (lambda done, total: None))
        former = (config.out / f"{config.name}-{split}.json" for split in SPLITS if split not in writers)
        publish(list(writers.values()), withdraw=former)
    made = [MadeSet(writer.manifest_path, writer.manifest) for writer in writers.values()]
    _warn_of_accidents(made, listed)
    return made


def _listed(config: ImageSets) -> list[Listed]:
    if config.labels is not None:
        return list_csv(config.labels)
    return list_folders(config.real, config.fake, config.methods, paired=config.paired)


def _assign_splits(listed: Sequence[Listed], config: ImageSets) -> list[Listed]:
    """Every image with its split, in the order of writing: mixed, but a group in one piece."""
    placed = [
        replace(item, split=item.split or draw_split(item.unit, config.seed, config.split)) for item in listed
    ]
    counts = Counter(item.split for item in placed)
    for split, share in zip(SPLITS, config.split, strict=True):
        if share > 0 and not counts[split] and all(item.split is None for item in listed):
            raise InputError(
                f"none of {len(placed)} images falls into {split} (share {share}); add images, "
                "or choose other shares (--split) or another --seed"
            )
    # Reals and fakes would otherwise fill shards of their own, and shuffling by shard not mix them.
    return sorted(placed, key=lambda item: (hashlib.blake2b(item.group.encode()).digest(), item.group))


def _common_side(paths: Iterable[Path]) -> int | None:
    sides = {side for size in map(probe_size, paths) if size for side in size}
    return sides.pop() if len(sides) == 1 else None


def _sample(item: Listed, config: ImageSets, crop: CropRecipe) -> Sample:
    dataset = config.dataset or config.name
    return Sample(
        dataset=dataset,
        source=item.source,
        label=item.label,
        video=item.video,
        frame=item.frame,
        group=f"{dataset}/{item.group}",
        group_level="exact",
        identity=item.identity,
        crop=crop,
        split=item.split,
    )


def _writer(config: ImageSets, split: Split, crop: CropRecipe, written_by: str) -> ShardWriter:
    return ShardWriter(
        config.out,
        f"{config.name}-{split}",
        dataset=config.dataset or config.name,
        split=split,
        crop=crop,
        max_shard_bytes=config.max_shard_mib << 20,
        written_by=written_by,
    )


def _write(
    writers: dict[Split, ShardWriter],
    listed: Sequence[Listed],
    samples: Sequence[Sample],
    config: ImageSets,
    progress: Progress,
) -> None:
    store = partial(_stored_or_reason, store=config.format, quality=config.quality)
    threads = min(8, os.cpu_count() or 1)
    stored = in_order(store, [item.path for item in listed], threads, ahead=4 * threads)
    results = zip(samples, stored, strict=True)
    done = 0
    for _, members in groupby(results, key=lambda result: result[0].group):
        items: list[Item] = []
        writer = None
        for sample, result in members:
            writer = writers[sample.split]
            if isinstance(result, Stored):
                items.append((sample, *result))
            else:
                failure = _failure(sample, result)
                _log.debug("%s: %s", failure.video, result)
                writer.add_failure(failure)
            done += 1
            progress(done, len(listed))
        if writer is not None and items:
            writer.add_group(items)


def _failure(sample: Sample, reason: str) -> Failure:
    return Failure(
        video=sample.key.rpartition("/")[0],
        label=sample.label,
        reason=reason,
        group=sample.group,
        group_level=sample.group_level,
        identity=sample.identity,
    )


def _stored_or_reason(path: Path, store: StoreFormat, quality: int) -> Stored | str:
    try:
        return store_image(path, store, quality)
    except UnusableImageError as error:
        return str(error)


def _warn_of_accidents(made: Sequence[MadeSet], listed: Sequence[Listed]) -> None:
    for each in made:
        missing = [label for label, count in each.manifest.by_label.items() if not count]
        if missing:
            _log.warning("%s holds no %s image: no AUROC on it", each.path, missing[0])
    suffixes: dict[int, set[str]] = defaultdict(set)
    for item in listed:
        suffixes[item.label].add(item.path.suffix.lower())
    if len(suffixes) == 2 and not suffixes[0] & suffixes[1]:
        _log.warning(
            "reals are %s and fakes %s: a detector may learn the file format; store both alike "
            "from the sources, or use --format jpg",
            sorted(suffixes[0]),
            sorted(suffixes[1]),
        )
