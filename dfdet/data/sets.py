"""The sets of a run, opened and checked: what the driver refuses early and the workers read."""

from __future__ import annotations

from dataclasses import dataclass

from dfdet.config import Config, Data, named_sets
from dfdet.data.index import Index, open_sets
from dfdet.data.plan import PlanSpec, batches_per_epoch
from dfdet.errors import ConfigError, ShardSetError


@dataclass(frozen=True)
class RunData:
    """Opened sets of a run and the plan over its training set."""

    train: Index
    val: dict[str, Index]
    test: dict[str, Index]
    spec: PlanSpec
    steps_per_epoch: int


def plan_spec(data: Data, seed: int) -> PlanSpec:
    """What decides the order of training batches."""
    return PlanSpec(
        seed=seed,
        global_batch=data.global_batch,
        mode=data.sampling,
        block_shards=data.block_shards,
        lanes=data.lanes,
    )


def open_run_data(config: Config) -> RunData:
    """Opens all sets of a config.

    Raises:
        ConfigError: No training set is named.
        ShardSetError: A set is missing, unfinished, damaged or too small; the line says which.
    """
    data = config.data
    if not data.train:
        raise ConfigError(
            "data.train is empty: no training set; give --data.train SET.json"
            " (python -m shards images makes one from folders of faces)"
        )
    train = open_sets(data.train, mix_crops=data.mix_crops)
    val, test = (
        {name: open_sets([path], mix_crops=data.mix_crops) for name, path in named_sets(entries).items()}
        for entries in (data.val, data.test)
    )
    if not data.mix_crops:
        _check_crops(
            train,
            {f"data.val {k}": v for k, v in val.items()} | {f"data.test {k}": v for k, v in test.items()},
        )
    spec = plan_spec(data, config.run.seed)
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
