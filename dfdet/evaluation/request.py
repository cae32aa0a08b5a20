"""What an evaluation is asked for, opened and checked before any worker starts."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.config import named_sets
from dfdet.data.crops import check_crop_scale
from dfdet.data.index import Index, make_cache, open_sets
from dfdet.data.plan import evaluation_batches
from dfdet.data.remote import is_url
from dfdet.errors import ShardSetError
from dfdet.evaluation.aggregate import TEMPORAL, without_clips
from dfdet.evaluation.corruptions.grid import GRID, Corruption, parse
from dfdet.evaluation.options import Options
from dfdet.evaluation.scorer import Look, Slice, Work, slices
from dfdet.evaluation.threshold import Threshold
from dfdet.schema import CropRecipe

logger = logging.getLogger(__name__)

BATCHES = 16
"""Batches of a slice: what a killed worker loses at most (batches)."""


@dataclass(frozen=True)
class Model:
    """A checkpoint without its tensors."""

    label: str
    """Short name, its own within the evaluation; names a folder."""
    source: str
    """As the user named it."""
    folder: Path | None
    """Our checkpoint's folder; None for a published file."""
    fingerprint: str
    """SHA-256 over its tensors."""
    crop: CropRecipe
    """How its training faces were cut."""
    crop_scale: float
    """Margin that its crops are scored at."""
    threshold: Threshold | None
    """The one that it came with."""
    config: dict[str, Any]
    """Of its run (JSON)."""
    clip_frames: int = 0
    """Frames of the clips that it scores too; 0 without a temporal head."""

    @property
    def look(self) -> Look:
        """How it looks at sets."""
        return Look(self.crop_scale, self.clip_frames)


@dataclass(frozen=True)
class Request:
    """All that is to be scored."""

    options: Options
    models: tuple[Model, ...]
    tests: dict[str, Index]
    """Test sets by name."""
    val: dict[str, Index]
    """The validation set, or none."""
    work: Work
    slices: tuple[Slice, ...]

    def record(self) -> dict[str, Any]:
        """All that the scores depend on (JSON)."""
        options = self.options
        return {
            "format_version": 1,
            "checkpoints": {model.label: model.fingerprint for model in self.models},
            "crop_scales": {model.label: model.crop_scale for model in self.models},
            "test": {name: index.digest for name, index in self.tests.items()},
            "val": {name: index.digest for name, index in self.val.items()},
            "corruptions": [corruption.name for corruption in self.work.corruptions],
            "seed": options.seed,
            "batch": options.batch,
            "on_damage": options.on_damage,
        }


def open_request(options: Options) -> Request:
    """Opens checkpoints and sets of an evaluation; paths must be absolute.

    Raises:
        ConfigError: An unknown corruption, a crop scale that a set does not hold, or scores of clips from a
            checkpoint that has none.
        WeightsError: A checkpoint that cannot be opened.
        ShardSetError: A set that cannot be opened, or whose faces were cut in another way.
        StorageError: A remote set cannot be fetched.
    """
    corruptions = select(options.robustness)
    tests, val = _open(options, options.test), _open(options, options.val)
    labels = _labels(options.checkpoint)
    models = tuple(
        _described(label, open_checkpoint(source, pretrained=options.pretrained), options)
        for label, source in zip(labels, options.checkpoint, strict=True)
    )
    for model in models:
        if options.aggregate == TEMPORAL and not model.clip_frames:
            raise without_clips(model.source)
        for name, index in {**val, **tests}.items():
            _check(model, name, index, options)
    opened = {key("val", name): index for name, index in val.items()}
    opened |= {key("test", name): index for name, index in tests.items()}
    paths = {key("val", name): path for name, path in named_sets(options.val).items()}
    paths |= {key("test", name): path for name, path in named_sets(options.test).items()}
    corrupted = [key("test", name) for name in tests] if corruptions else []
    looks = [model.look for model in models]
    sizes = {
        name: {t: evaluation_batches(index, options.batch, t) for t in {look.clip_frames for look in looks}}
        for name, index in opened.items()
    }
    parts = slices(sizes, looks, BATCHES, corrupted)
    return Request(options, models, tests, val, Work(options, paths, corruptions), tuple(parts))


def key(split: Literal["val", "test"], name: str) -> str:
    """A set's name among all: a test set and a validation set may share one."""
    return f"{split}-{name}"


def select(names: Sequence[str]) -> tuple[Corruption, ...]:
    """Corruptions by ``all``, kind or name, in the order of the grid.

    Raises:
        ConfigError: There is no such one.
    """
    kinds = {corruption.kind for corruption in GRID}
    chosen = {parse(name) for name in names if name != "all" and name not in kinds}
    return tuple(c for c in GRID if "all" in names or c.kind in names or c in chosen)


def _open(options: Options, entries: tuple[str, ...]) -> dict[str, Index]:
    cache = make_cache(options.data())
    return {
        name: open_sets([path], mix_crops=options.mix_crops, cache=cache)
        for name, path in named_sets(entries).items()
    }


def _described(label: str, opened: Opened, options: Options) -> Model:
    return Model(
        label,
        opened.source,
        None if is_url(opened.source) else opened.folder,  # what lies there is only a copy
        opened.fingerprint,
        opened.crop,
        options.crop_scale or opened.config.data.crop_scale,
        opened.threshold,
        opened.config.model_dump(mode="json"),
        opened.detector.temporal.frames if opened.detector.temporal is not None else 0,
    )


def _labels(sources: Sequence[str]) -> list[str]:
    """A short name for each checkpoint: that of its run or file, numbered where it repeats."""
    names = []
    for source in sources:
        parts = [part for part in re.split(r"[/:]", source) if part]
        run = [part for part in parts if part != "checkpoints" and not part.startswith("step_")]
        names.append(
            re.sub(r"[^A-Za-z0-9._-]", "_", (run or parts or ["checkpoint"])[-1]).lstrip(".") or "model"
        )
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return labels


def _check(model: Model, name: str, index: Index, options: Options) -> None:
    """Refuses a set whose faces were aligned in another way: it would take the model to chance.

    The stored scale and size may differ, as the crop is cut at the model's scale; so may the rule by which
    one of several faces is taken.
    """
    check_crop_scale(index, model.crop_scale)
    ours, theirs = model.crop, index.crop
    if ours.template != theirs.template and not options.mix_crops:
        raise ShardSetError(
            f"{name}: its faces were aligned to template {theirs.template!r}, those that {model.source} was"
            f" trained on to {ours.template!r}; crop them alike, or score them all the same with"
            " --mix_crops True"
        )
    if (theirs.detector, theirs.detector_weights_sha256) != (ours.detector, ours.detector_weights_sha256):
        logger.warning(
            "%s: faces found by %s, those that %s was trained on by %s",
            *(name, theirs.detector or "an unknown detector", model.label, ours.detector or "an unknown one"),
        )
