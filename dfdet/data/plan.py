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

from dfdet.data.clips import clips_in_order, clips_of, count_clips
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
    clip_frames: int = 0
    """Samples of a unit where ``mode`` is ``clip`` (frames)."""

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.global_batch % self.unit_size:
            raise ConfigError(
                f"data.global_batch={self.global_batch}: data.sampling={self.mode} needs a positive"
                f" multiple of {self.unit_size}; set --data.global_batch"
                f" {max(1, self.global_batch // self.unit_size) * self.unit_size}"
            )
        if self.lanes < 1 or self.units_per_batch % self.lanes:
            raise ConfigError(
                f"data.lanes={self.lanes}: does not divide the {self.units_per_batch} units of a global"
                " batch; set --data.lanes to the number of workers, or 1"
            )

    @property
    def unit_size(self) -> int:
        """Samples of a unit, which never comes apart: 1, 2 for pairs, those of a clip."""
        return {"single": 1, "clip": self.clip_frames}.get(self.mode, 2)

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
    clip_frames: int = 0
    """Neighbouring entries that make a clip; 0 where there are none."""

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
        (real, fake) in columns 2i and 2i + 1, ``clip`` as T neighbouring columns.

    Raises:
        ShardSetError: Nothing can be paired, or there are fewer units than a batch.
    """
    units = _units(index, spec, epoch)
    shape = batches_of(len(units), spec), spec.global_batch
    if lazy is None:
        lazy = len(units) >= LAZY_UNITS
    lanes = spec.lanes if lazy else 1
    order = Order(index.shard, units, spec.seed, epoch, spec.block_shards, lanes)
    if not lazy:
        numbers = order.take(0, len(units))
        return _batched(units.samples(numbers), units.valid(numbers), spec)
    return EpochPlan(
        Rows(shape, partial(_ids_of_batch, order, units, spec)),
        Rows(shape, partial(_valid_of_batch, order, units, spec)),
        spec.clip_frames,
    )


def _units(index: Columns, spec: PlanSpec, epoch: int) -> Units:
    if spec.mode == "clip":
        return clips_of(index, spec.clip_frames, spec.seed, epoch)
    return units_of(index, spec.mode, spec.seed, epoch)


def batches_per_epoch(index: Columns, spec: PlanSpec) -> int:
    """Batches of any epoch's plan; raises as :func:`epoch_plan`."""
    clips = spec.mode == "clip"
    return batches_of(count_clips(index, spec.clip_frames) if clips else count_units(index, spec.mode), spec)


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
            f" { {'single': 'samples', 'clip': 'clips'}.get(spec.mode, 'pairs') } an epoch"
            f" ({samples} samples, data.sampling={spec.mode}); {remedy}"
        )
    return full


def sequential_plan(n: int, batch: int) -> WholePlan:
    """The index in its own order, the last batch masked: for evaluation."""
    ids = np.arange(-(-n // batch) * batch, dtype=np.int64)
    valid = ids < n
    return WholePlan(np.where(valid, ids, 0).reshape(-1, batch), valid.reshape(-1, batch))


def evaluation_plan(index: Columns, batch: int, clip_frames: int = 0) -> WholePlan:
    """Every sample once: :func:`sequential_plan`, or with ``clip_frames`` clip by clip.

    Args:
        index: Columns of the data.
        batch: Samples of a batch; of clips as many whole ones as it holds, at least one.
        clip_frames: Samples of a clip; 0 for none.
    """
    if not clip_frames:
        return sequential_plan(len(index.label), batch)
    spec = PlanSpec(0, clip_batch(batch, clip_frames), "clip", tail="mask", clip_frames=clip_frames)
    clips = clips_in_order(index, clip_frames)
    numbers = np.arange(len(clips))
    return _batched(clips.samples(numbers), clips.valid(numbers), spec)


def evaluation_batches(index: Columns, batch: int, clip_frames: int = 0) -> int:
    """Batches of :func:`evaluation_plan`."""
    if not clip_frames:
        return -(-len(index.label) // batch)
    return -(-count_clips(index, clip_frames) * clip_frames // clip_batch(batch, clip_frames))


def clip_batch(batch: int, clip_frames: int) -> int:
    """Samples of as many whole clips as a batch holds, at least one."""
    return max(1, batch // clip_frames) * clip_frames


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
    fields = asdict(spec)
    if spec.mode != "clip":
        del fields["clip_frames"]  # as it was before there were clips: runs of then go on
    record = {"version": PLAN_VERSION, "index": digest, **fields}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def unpaired(index: Columns, mode: Mode) -> int:
    """Samples that no plan of this mode can hold: without an exact group, or without a counterpart."""
    return 0 if mode in ("single", "clip") else int((~pairable_samples(index)).sum())


def _batched(ids: Ids, valid: NDArray[np.bool_], spec: PlanSpec) -> WholePlan:
    """Cuts ordered units [U, k] into batches [batches, B]: full ones by lanes, then the padded tail."""
    padding = ids[0, 0] if len(ids) else 0
    return WholePlan(_cut(ids, padding, spec), _cut(valid, False, spec), spec.clip_frames)


def _cut(units: NDArray[Any], padding: int | bool, spec: PlanSpec) -> NDArray[Any]:
    per, lanes = spec.units_per_batch, spec.lanes
    full, rest = divmod(len(units), per)
    body = units[: full * per].reshape(lanes, full, per // lanes, spec.unit_size)
    found = body.swapaxes(0, 1).reshape(full, spec.global_batch)
    if rest and spec.tail == "mask":
        tail = units[full * per :].reshape(1, -1)
        pad = spec.global_batch - tail.shape[1]
        found = np.concatenate([found, np.pad(tail, ((0, 0), (0, pad)), constant_values=padding)])
    return np.ascontiguousarray(found)


def _ids_of_batch(order: Order, units: Units, spec: PlanSpec, number: int) -> Ids:
    """A row of :func:`_batched`, [B]."""
    ids = units.samples(_units_of_batch(order, len(units), spec, number)).reshape(-1)
    if len(ids) == spec.global_batch:
        return ids
    first = units.samples(order.take(0, 1))[0, 0]
    return np.pad(ids, (0, spec.global_batch - len(ids)), constant_values=first)


def _valid_of_batch(order: Order, units: Units, spec: PlanSpec, number: int) -> NDArray[np.bool_]:
    """A row of :func:`_batched`, [B]."""
    if spec.mode != "clip":  # known without the order
        entries = len(units) * spec.unit_size
        return number * spec.global_batch + np.arange(spec.global_batch) < entries
    valid = units.valid(_units_of_batch(order, len(units), spec, number)).reshape(-1)
    return np.pad(valid, (0, spec.global_batch - len(valid)))


def _units_of_batch(order: Order, count: int, spec: PlanSpec, number: int) -> NDArray[Any]:
    """Numbers of the units of a batch; fewer in the last."""
    per, piece = spec.units_per_batch, spec.units_per_batch // spec.lanes
    full = count // per
    if number >= full:
        return order.take(full * per, count)
    starts = (np.arange(spec.lanes) * full + number) * piece
    return np.concatenate([order.take(low, low + piece) for low in starts.tolist()])
