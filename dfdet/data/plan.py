"""The epoch plan: which samples each global batch holds, as a pure function of plain integers.

World size, threads and gradient accumulation never enter it. A rank takes its slice of each global
batch; so every plan entry comes exactly once an epoch on any number of ranks, and a resume needs no
more than (epoch, completed batches) and a fingerprint. Arithmetic is NumPy alone, without torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dfdet.data.hashing import Uint64, chain
from dfdet.errors import ConfigError, ShardSetError
from dfdet.schema import FAKE, REAL

PLAN_VERSION = 1
"""Raised when the same arguments would give another order; part of the fingerprint."""

# Purposes of the hashes, so that no two draws share a stream.
_ORDER, _SHARDS, _PARTNER, _METHOD = 1, 2, 3, 4

Ids = NDArray[np.int64]
Mode = Literal["single", "pair", "rotate"]


class _Columns(Protocol):
    """What a plan needs of an index: integer columns, row = sample id."""

    @property
    def shard(self) -> NDArray[Any]: ...
    @property
    def label(self) -> NDArray[Any]: ...
    @property
    def method(self) -> NDArray[Any]: ...
    @property
    def group(self) -> NDArray[Any]: ...
    @property
    def group_exact(self) -> NDArray[np.bool_]: ...
    @property
    def frame(self) -> NDArray[Any]: ...


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
class EpochPlan:
    """The global batches of an epoch."""

    ids: Ids
    """Sample ids, [batches, B] int64."""
    valid: NDArray[np.bool_]
    """False where an entry only pads, [batches, B] bool."""

    def __len__(self) -> int:
        return len(self.ids)


def epoch_plan(index: _Columns, spec: PlanSpec, epoch: int) -> EpochPlan:
    """Orders an epoch.

    Args:
        index: _Columns of the data.
        spec: Seed, batch, mode and shuffle.
        epoch: Number of the epoch, from 0.

    Returns:
        A plan with as many batches in every epoch. ``pair`` and ``rotate`` place units as
        (real, fake) in columns 2i and 2i + 1.

    Raises:
        ShardSetError: Nothing can be paired, or there are fewer units than a batch.
    """
    units = _units(index, spec, epoch)
    batches_of(len(units), spec)
    return _batched(units[_order(index.shard, units[:, 0], spec, epoch)], spec)


def batches_per_epoch(index: _Columns, spec: PlanSpec) -> int:
    """Batches of any epoch's plan; raises as :func:`epoch_plan`."""
    return batches_of(int(_primary(index, spec.mode).sum()), spec)


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


def sequential_plan(n: int, batch: int) -> EpochPlan:
    """The index in its own order, the last batch masked: for evaluation."""
    ids = np.arange(-(-n // batch) * batch, dtype=np.int64)
    valid = ids < n
    return EpochPlan(np.where(valid, ids, 0).reshape(-1, batch), valid.reshape(-1, batch))


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


def unpaired(index: _Columns, mode: Mode) -> int:
    """Samples that no plan of this mode can hold: without an exact group, or without a counterpart."""
    return 0 if mode == "single" else int((~_pairable(index)).sum())


def _pairable(index: _Columns) -> NDArray[np.bool_]:
    """Samples whose exact group holds reals and fakes, [n] bool."""
    exact = np.asarray(index.group_exact, bool) & (np.asarray(index.group) >= 0)
    both = np.intersect1d(
        index.group[exact & (index.label == REAL)], index.group[exact & (index.label == FAKE)]
    )
    return exact & np.isin(index.group, both)


def _primary(index: _Columns, mode: Mode) -> NDArray[np.bool_]:
    """Samples that make one unit each: all; every fake of ``pair``; every real of ``rotate``."""
    if mode == "single":
        return np.ones(len(index.label), bool)
    mask = _pairable(index) & (index.label == (FAKE if mode == "pair" else REAL))
    if not mask.any():
        raise ShardSetError(
            f"data.sampling={mode}: no fake has a real of its group (group_level exact);"
            " use --data.sampling single"
        )
    return mask


def _units(index: _Columns, spec: PlanSpec, epoch: int) -> Ids:
    """The epoch's unit table, [U, k] sample ids; pairs as (real, fake)."""
    primary = np.flatnonzero(_primary(index, spec.mode))
    if spec.mode == "single":
        return primary[:, None]
    pairable = _pairable(index)
    if spec.mode == "pair":
        reals = np.flatnonzero(pairable & (index.label == REAL))
        cells = index.group.astype(np.int64)
        partner = _partners(primary, cells[primary], reals, cells[reals], index.frame, spec.seed, epoch)
        return np.stack([partner, primary], axis=1)
    fakes = np.flatnonzero(pairable & (index.label == FAKE))
    cells = index.group.astype(np.int64) * (int(index.method.max()) + 1) + index.method
    wanted = _rotating_cells(index, primary, np.unique(cells[fakes]), spec.seed, epoch)
    partner = _partners(primary, wanted, fakes, cells[fakes], index.frame, spec.seed, epoch)
    return np.stack([primary, partner], axis=1)


def _rotating_cells(index: _Columns, reals: Ids, cells: Ids, seed: int, epoch: int) -> Ids:
    """The (group, method) cell of each real's fake: the group's methods in turn, one an epoch.

    Each real starts at a hashed offset, so that an epoch has all methods and each real meets all
    of its group's methods in as many epochs as there are methods.
    """
    methods = int(index.method.max()) + 1
    first = index.group[reals].astype(np.int64) * methods
    low, high = np.searchsorted(cells, first), np.searchsorted(cells, first + methods)
    offset = (chain(seed, _METHOD, reals) % np.uint64(2**31)).astype(np.int64)
    return cells[low + (offset + epoch) % (high - low)]


def _partners(
    queries: Ids, wanted: Ids, pool: Ids, pool_cells: Ids, frames: NDArray[Any], seed: int, epoch: int
) -> Ids:
    """For each query a member of its cell in the pool: of the same frame if there is one, else by hash.

    Args:
        queries: Sample ids to find a partner for, [q].
        wanted: Cell of each, [q]; every cell has members.
        pool: Sample ids to choose from, [p].
        pool_cells: Cell of each, [p].
        frames: Frame of every sample id, [n].
        seed: Seed of the plan.
        epoch: Epoch: a choice by hash is another one in the next.
    """
    span = int(frames.max()) + 1
    order = np.lexsort((pool, frames[pool], pool_cells))
    pool, keys = pool[order], (pool_cells * span + frames[pool])[order]
    same = wanted * span + frames[queries]
    low, high = np.searchsorted(keys, same), np.searchsorted(keys, same + 1)
    none = low == high
    low[none] = np.searchsorted(keys, wanted[none] * span)
    high[none] = np.searchsorted(keys, (wanted[none] + 1) * span)
    draw = chain(seed, epoch, _PARTNER, queries)
    return pool[low + (draw % (high - low).astype(np.uint64)).astype(np.int64)]


def _order(shards: NDArray[Any], units: Ids, spec: PlanSpec, epoch: int) -> Ids:
    """Permutation of the units, keyed by their primary sample; by blocks of shards where asked."""
    keys = chain(spec.seed, epoch, _ORDER, np.arange(len(units)))
    if not spec.block_shards:
        return np.argsort(keys, kind="stable")
    return np.lexsort((keys, _blocks(shards[units], spec, epoch)))


def _blocks(shards: NDArray[Any], spec: PlanSpec, epoch: int) -> Ids:
    """Place of each unit's block: the shards in hashed order, ``block_shards`` at a time."""
    present, position = np.unique(shards, return_inverse=True)
    keys: Uint64 = chain(spec.seed, epoch, _SHARDS, present)
    place = np.empty(len(present), np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(len(present))
    return place[position] // spec.block_shards


def _batched(units: Ids, spec: PlanSpec) -> EpochPlan:
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
    return EpochPlan(np.ascontiguousarray(ids), valid)
