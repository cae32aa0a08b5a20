"""The epoch plan: which samples each global batch holds, as a pure function of plain integers.

World size, threads and gradient accumulation never enter it. A rank takes its slice of each global
batch; so every plan entry comes exactly once an epoch on any number of ranks, and a resume needs no
more than (epoch, completed batches) and a fingerprint. Arithmetic is NumPy alone, without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfdet.data.order import Order
from dfdet.data.pairing import Columns, Ids, Mode, Units, count_units, pairable_samples, units_of
from dfdet.errors import ConfigError, ShardSetError

PLAN_VERSION = 1
"""Raised when the same arguments would give another order; part of the fingerprint."""

LAZY_UNITS = 1 << 22
"""From here on batches are computed when they are read; below, all at once in a second or two (units)."""


@dataclass(frozen=True)
class PlanSpec:
    """What decides an order besides data and epoch."""

    seed: int
    global_batch: int
    """Samples of a global batch over all ranks (samples)."""
    mode: Mode
    block_shards: int = 0
    """Shuffle within blocks of this many shards; 0 over all (shards)."""
    lanes: int = 1
    """Runs of the order that are interleaved; must divide the units of a batch (runs)."""
    tail: Literal["drop", "mask"] = "drop"
    """Last, incomplete batch: left out, or padded with entries that are not valid."""

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.global_batch % self.unit_size:
            raise ConfigError(
                f"data.global_batch={self.global_batch}: data.sampling={self.mode} needs a positive"
                f" multiple of {self.unit_size}; set --data.global_batch {max(2, self.global_batch // 2 * 2)}"
            )
        if self.lanes < 1 or self.units_per_batch % self.lanes:
            raise ConfigError(
                f"data.lanes={self.lanes}: does not divide the {self.units_per_batch} units of a global"
                " batch; set --data.lanes to the number of workers, or 1"
            )

    @property
    def unit_size(self) -> int:
        """Samples of a unit, which never comes apart: 1, or 2 for pairs."""
        return 1 if self.mode == "single" else 2

    @property
    def units_per_batch(self) -> int:
        """Units of a global batch."""
        return self.global_batch // self.unit_size


@dataclass(frozen=True, eq=False)
class Rows:
    """An array [batches, B] whose rows are computed when they are read, in any order."""

    shape: tuple[int, int]
    """Batches, and entries of a batch."""
    row: Callable[[int], NDArray[Any]]
    """Gives a row, [B]."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, number: int) -> NDArray[Any]:
        return self.row(range(len(self))[number])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The global batches of an epoch; any of them is read at once, without those before."""

    ids: Ids | Rows
    """Sample ids, [batches, B] int64."""
    valid: NDArray[np.bool_] | Rows
    """False where an entry only pads, [batches, B] bool."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class WholePlan(EpochPlan):
    """A plan whose batches have all been computed."""

    ids: Ids
    valid: NDArray[np.bool_]


def epoch_plan(index: Columns, spec: PlanSpec, epoch: int, *, lazy: bool | None = None) -> EpochPlan:
    """Orders an epoch.

    Args:
        index: Columns of the data.
        spec: Seed, batch, mode and shuffle.
        epoch: Number of the epoch, from 0.
        lazy: Compute batches when they are read, as :class:`Rows`; by default from ``LAZY_UNITS``
            units on. Only time and memory differ, not the plan.

    Returns:
        A plan with as many batches in every epoch. ``pair`` and ``rotate`` place units as
        (real, fake) in columns 2i and 2i + 1.

    Raises:
        ShardSetError: Nothing can be paired, or there are fewer units than a batch.
    """
    units = units_of(index, spec.mode, spec.seed, epoch)
    shape = batches_of(len(units), spec), spec.global_batch
    if lazy is None:
        lazy = len(units) >= LAZY_UNITS
    lanes = spec.lanes if lazy else 1
    order = Order(index.shard, units, spec.seed, epoch, spec.block_shards, lanes)
    if not lazy:
        return _batched(units.samples(order.take(0, len(units))), spec)
    entries = len(units) * spec.unit_size
    return EpochPlan(
        Rows(shape, partial(_ids_of_batch, order, units, spec)),
        Rows(shape, partial(_valid_of_batch, entries, spec)),
    )


def batches_per_epoch(index: Columns, spec: PlanSpec) -> int:
    """Batches of any epoch's plan; raises as :func:`epoch_plan`."""
    return batches_of(count_units(index, spec.mode), spec)


def batches_of(units: int, spec: PlanSpec) -> int:
    """Batches that ``units`` units give.

    Raises:
        ShardSetError: Fewer units than a batch, with ``tail=drop``: an epoch would be empty.
    """
    full, rest = divmod(units, spec.units_per_batch)
    if spec.tail == "mask":
        return full + bool(rest)
    if not full:
        samples = units * spec.unit_size
        remedy = f"set --data.global_batch {samples} or smaller" if samples else "add data"
        raise ShardSetError(
            f"data.global_batch={spec.global_batch}: the training sets give only {units}"
            f" {'samples' if spec.unit_size == 1 else 'pairs'} an epoch"
            f" ({samples} samples, data.sampling={spec.mode}); {remedy}"
        )
    return full


def sequential_plan(n: int, batch: int) -> WholePlan:
    """The index in its own order, the last batch masked: for evaluation."""
    ids = np.arange(-(-n // batch) * batch, dtype=np.int64)
    valid = ids < n
    return WholePlan(np.where(valid, ids, 0).reshape(-1, batch), valid.reshape(-1, batch))


def rank_slice(plan_row: NDArray[Any], rank: int, world: int) -> NDArray[Any]:
    """The contiguous part of a global batch [B] that a rank computes, [B / world].

    Raises:
        ConfigError: ``world`` does not divide B, or ``rank`` is not below ``world``.
    """
    share, rest = divmod(len(plan_row), world)
    if rest or not 0 <= rank < world:
        raise ConfigError(
            f"rank {rank} of {world}: cannot take its share of a global batch of {len(plan_row)}; "
            "data.global_batch must be a multiple of the workers"
        )
    return plan_row[rank * share : (rank + 1) * share]


def fingerprint(digest: str, spec: PlanSpec) -> str:
    """Identifies data and order: a resume on another fingerprint would train on other batches."""
    record = {"version": PLAN_VERSION, "index": digest, **asdict(spec)}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def unpaired(index: Columns, mode: Mode) -> int:
    """Samples that no plan of this mode can hold: without an exact group, or without a counterpart."""
    return 0 if mode == "single" else int((~pairable_samples(index)).sum())


def _batched(units: Ids, spec: PlanSpec) -> WholePlan:
    """Cuts ordered units [U, k] into batches [batches, B]: full ones by lanes, then the padded tail."""
    per, lanes = spec.units_per_batch, spec.lanes
    full, rest = divmod(len(units), per)
    body = units[: full * per].reshape(lanes, full, per // lanes, spec.unit_size)
    ids = body.swapaxes(0, 1).reshape(full, spec.global_batch)
    valid = np.ones_like(ids, bool)
    if rest and spec.tail == "mask":
        tail = units[full * per :].reshape(1, -1)
        pad = spec.global_batch - tail.shape[1]
        ids = np.concatenate([ids, np.pad(tail, ((0, 0), (0, pad)), constant_values=units[0, 0])])
        valid = np.concatenate([valid, np.arange(spec.global_batch)[None] < tail.shape[1]])
    return WholePlan(np.ascontiguousarray(ids), valid)


def _ids_of_batch(order: Order, units: Units, spec: PlanSpec, number: int) -> Ids:
    """A row of :func:`_batched`, [B]."""
    per, piece = spec.units_per_batch, spec.units_per_batch // spec.lanes
    full = len(units) // per
    if number < full:
        starts = (np.arange(spec.lanes) * full + number) * piece
        taken = [order.take(low, low + piece) for low in starts.tolist()]
        return units.samples(np.concatenate(taken)).reshape(-1)
    tail = units.samples(order.take(full * per, len(units))).reshape(-1)
    first = units.samples(order.take(0, 1))[0, 0]
    return np.pad(tail, (0, spec.global_batch - len(tail)), constant_values=first)


def _valid_of_batch(entries: int, spec: PlanSpec, number: int) -> NDArray[np.bool_]:
    """Whether the entries of a batch are among the ``entries`` of the epoch, [B]."""
    return number * spec.global_batch + np.arange(spec.global_batch) < entries
