"""The sets of a run, opened and checked: what the driver refuses early and the workers read."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from dfdet.config import Config, Data, named_sets
from dfdet.data.cache import GIB
from dfdet.data.crops import check_crop_scale, widest_crop
from dfdet.data.index import Index, make_cache, open_sets
from dfdet.data.plan import PlanSpec, batches_per_epoch
from dfdet.data.remote import Remote
from dfdet.errors import ConfigError, ShardSetError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Opened sets of a run and the plan over its training set."""

    train: Index
    val: dict[str, Index]
    test: dict[str, Index]
    spec: PlanSpec
    steps_per_epoch: int

    @property
    def widest_crop(self) -> float:
        """Largest crop scale that can be cut from every set."""
        return min(widest_crop(index) for index in (self.train, *self.val.values(), *self.test.values()))


def plan_spec(data: Data, seed: int) -> PlanSpec:
    """What decides the order of training batches."""
    return PlanSpec(
        seed=seed,
        global_batch=data.global_batch,
        mode=data.sampling,
        block_shards=data.block_shards,
        lanes=data.lanes,
        clip_frames=data.clip_frames if data.sampling == "clip" else 0,
    )


def open_run_data(config: Config) -> RunData:
    """Opens all sets of a config.

    Raises:
        ConfigError: No training set is named, or crops of ``data.crop_scale`` cannot be cut from a set.
        ShardSetError: A set is missing, unfinished, damaged or too small; the line says which.
        StorageError: A remote set cannot be fetched.
    """
    data = config.data
    if not data.train:
        raise ConfigError(
            "data.train is empty: no training set; give --data.train SET.json"
            " (python -m shards images makes one from folders of faces)"
        )
    cache = make_cache(data)
    train = open_sets(data.train, mix_crops=data.mix_crops, cache=cache)
    val, test = (
        {
            name: open_sets([path], mix_crops=data.mix_crops, cache=cache)
            for name, path in named_sets(entries).items()
        }
        for entries in (data.val, data.test)
    )
    if not data.mix_crops:
        _check_crops(
            train,
            {f"data.val {k}": v for k, v in val.items()} | {f"data.test {k}": v for k, v in test.items()},
        )
    for index in (train, *val.values(), *test.values()):
        check_crop_scale(index, data.crop_scale)
    spec = plan_spec(data, config.run.seed)
    _warn_of_thrashing(train, spec, data.cache_gib)
    return RunData(train, val, test, spec, batches_per_epoch(train, spec))


def _check_crops(train: Index, others: dict[str, Index]) -> None:
    """Refuses sets whose faces were cut in another way: a different crop takes a model to chance."""
    for name, index in others.items():
        if index.crop != train.crop:
            raise ShardSetError(
                f"{name}: cut by another recipe than data.train ({index.crop.model_dump(exclude_none=True)},"
                f" there {train.crop.model_dump(exclude_none=True)}); cut them alike, or set"
                " --data.mix_crops True"
            )


def _warn_of_thrashing(train: Index, spec: PlanSpec, cache_gib: float) -> None:
    """Says when the order walks over more remote shards at once than the cache keeps."""
    sizes = [shard.bytes for shard in train.shards if isinstance(shard, Remote)]
    walked = min(spec.block_shards * spec.lanes, len(sizes)) if spec.block_shards else len(sizes)
    gib = sum(sorted(sizes, reverse=True)[:walked]) / GIB
    if gib > cache_gib:
        log.warning(
            "data.block_shards=%d, data.lanes=%d: batches are drawn from %d remote shards at once = %.1f GiB,"
            " more than data.cache_gib=%g: shards will be fetched again and again; set --data.block_shards %d"
            " or --data.cache_gib %.0f",
            spec.block_shards,
            spec.lanes,
            walked,
            gib,
            cache_gib,
            max(1, int(walked * cache_gib / gib / spec.lanes)),
            np.ceil(gib),
        )
