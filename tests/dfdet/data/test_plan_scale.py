"""Plans computed in buckets and batch by batch are those of one whole sort, whatever the sizes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dfdet.data import order, pairing
from dfdet.data.hashing import chain
from dfdet.data.plan import EpochPlan, PlanSpec, batches_per_epoch, epoch_plan
from dfdet.errors import ShardSetError

from .test_plan import DATA, Columns, columns, pairable, specs

FAST = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
BUCKETS = st.sampled_from([1, 3, 8, 64])


def plans(data: Columns, spec: PlanSpec, epoch: int, bucket: int) -> tuple[EpochPlan, EpochPlan]:
    """Eager and lazy plan with small buckets and pieces; the example is left out if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BUCKET_UNITS", bucket)
        patch.setattr(pairing, "PIECE", bucket + 2)
        try:
            return epoch_plan(data, spec, epoch, lazy=False), epoch_plan(data, spec, epoch, lazy=True)
        except ShardSetError:
            assume(False)
    raise AssertionError


def shuffled(data: Columns, seed: int) -> Columns:
    """The same samples in rows of another order, as foreign tars have them."""
    rows = np.argsort(chain(seed, np.arange(len(data.label))))
    return Columns(**{name: values[rows] for name, values in vars(data).items()})


def naive_partner(data: Columns, query: int, method: int | None, spec: PlanSpec, epoch: int) -> int:
    """The partner by a scan of all samples."""
    label = 0 if spec.mode == "pair" else 1
    cell = [
        (int(data.frame[row]), row)
        for row in range(len(data.label))
        if data.group[row] == data.group[query]
        and data.label[row] == label
        and method in (None, data.method[row])
    ]
    same = sorted(pair for pair in cell if pair[0] == data.frame[query])
    members = same or sorted(cell)
    return members[int(chain(spec.seed, epoch, 3, query)[0]) % len(members)][1]


def naive_units(data: Columns, spec: PlanSpec, epoch: int) -> list[tuple[int, ...]]:
    """The units in the order of their primary samples, by loops."""
    if spec.mode == "single":
        return [(row,) for row in range(len(data.label))]
    primary = np.flatnonzero(pairable(data) & (data.label == (1 if spec.mode == "pair" else 0)))
    if spec.mode == "pair":
        return [(naive_partner(data, row, None, spec, epoch), row) for row in primary.tolist()]
    units = []
    for row in primary.tolist():
        fakes = (data.group == data.group[row]) & (data.label == 1)
        methods = sorted(set(data.method[fakes].tolist()))
        turn = int(chain(spec.seed, 4, row)[0]) % 2**31 + epoch
        units.append((row, naive_partner(data, row, methods[turn % len(methods)], spec, epoch)))
    return units


def naive_order(data: Columns, units: list[tuple[int, ...]], spec: PlanSpec, epoch: int) -> list[int]:
    """Unit numbers sorted by block and hash, with Python's sort."""
    shards = {int(data.shard[unit[0]]) for unit in units}
    ranked = sorted(shards, key=lambda shard: int(chain(spec.seed, epoch, 2, shard)[0]))
    block = {shard: place // (spec.block_shards or len(units)) for place, shard in enumerate(ranked)}
    keys = [(block[int(data.shard[unit[0]])] if spec.block_shards else 0) for unit in units]
    hashes = chain(spec.seed, epoch, 1, np.arange(len(units))).tolist()
    return sorted(range(len(units)), key=lambda unit: (keys[unit], hashes[unit]))


def naive_batches(data: Columns, spec: PlanSpec, epoch: int) -> list[list[int]]:
    """Valid sample ids of each batch."""
    units = naive_units(data, spec, epoch)
    ordered = [units[number] for number in naive_order(data, units, spec, epoch)]
    full, part = len(units) // spec.units_per_batch, spec.units_per_batch // spec.lanes
    lanes = [ordered[lane * full * part :][: full * part] for lane in range(spec.lanes)]
    cuts = [[lane[batch * part :][:part] for lane in lanes] for batch in range(full)]
    batches = [[row for cut in batch for unit in cut for row in unit] for batch in cuts]
    rest = [row for unit in ordered[full * spec.units_per_batch :] for row in unit]
    return batches + ([rest] if rest and spec.tail == "mask" else [])


@FAST
@given(DATA, specs(), st.integers(0, 5), BUCKETS, st.booleans())
def test_buckets_give_the_order_of_a_plain_sort(data, spec, epoch, bucket, foreign):
    data = shuffled(data, epoch) if foreign else data
    eager, _ = plans(data, spec, epoch, bucket)
    found = [ids[valid].tolist() for ids, valid in zip(eager.ids, eager.valid, strict=True)]
    assert found == naive_batches(data, spec, epoch)


@FAST
@given(DATA, specs(), st.integers(0, 5), BUCKETS, st.booleans())
def test_lazy_batches_are_the_eager_ones(data, spec, epoch, bucket, foreign):
    data = shuffled(data, epoch) if foreign else data
    eager, lazy = plans(data, spec, epoch, bucket)
    assert len(lazy) == len(eager) and lazy.ids.shape == lazy.valid.shape == eager.ids.shape
    for number in range(len(eager)):
        assert lazy.ids[number].tolist() == eager.ids[number].tolist()
        assert lazy.valid[number].tolist() == eager.valid[number].tolist()
        assert lazy.ids[number].dtype == np.int64 and lazy.valid[number].dtype == bool


@FAST
@given(DATA, specs(), st.randoms(use_true_random=False), BUCKETS)
def test_lazy_batches_are_the_same_in_any_order_of_reading(data, spec, random, bucket):
    eager, lazy = plans(data, spec, 1, bucket)
    numbers = [number for number in range(-len(eager), len(eager)) for _ in range(2)]
    random.shuffle(numbers)
    assert all(lazy.ids[number].tolist() == eager.ids[number].tolist() for number in numbers)


def test_a_lazy_plan_ends_as_an_array_does():
    plan = epoch_plan(columns(4, 3, 2), PlanSpec(0, 4, "single", tail="mask"), 0, lazy=True)
    assert len(list(plan.ids)) == len(plan)
    with pytest.raises(IndexError):
        plan.ids[len(plan)]


def test_a_resume_sorts_only_the_buckets_of_its_batch(monkeypatch):
    data = Columns(*(np.zeros(4096, np.int32) for _ in range(6)))
    monkeypatch.setattr(order, "BUCKET_UNITS", 64)
    sorted_units = []
    whole = order._sorted
    monkeypatch.setattr(
        order, "_sorted", lambda *args: sorted_units.append(len(found := whole(*args))) or found
    )
    plan = epoch_plan(data, PlanSpec(0, 32, "single"), 0, lazy=True)
    assert sorted_units == []
    plan.ids[100]
    assert len(sorted_units) <= 2 and sum(sorted_units) < 256


def test_codes_too_large_to_combine_are_refused():
    data = columns(4, 3, 2)
    huge = Columns(**{**vars(data), "frame": data.frame.astype(np.int64) + 2**60})
    with pytest.raises(ShardSetError, match=r"frames: too many .*sampling single"):
        epoch_plan(huge, PlanSpec(0, 4, "pair"), 0)


def test_batches_are_counted_as_they_are_planned_where_groups_are_unknown():
    data = columns(9, 3, 2)
    unknown = Columns(**{**vars(data), "group": np.where(data.group % 3 == 1, -1, data.group)})
    for mode in ("pair", "rotate"):
        spec = PlanSpec(0, 4, mode, tail="mask")
        plan = epoch_plan(unknown, spec, 0)
        assert len(plan) == batches_per_epoch(unknown, spec)
        assert (unknown.group[plan.ids[plan.valid]] >= 0).all()


@pytest.mark.parametrize(("mode", "bytes_a_sample"), [("single", 20), ("pair", 28), ("rotate", 40)])
def test_memory_stays_within_a_few_numbers_a_sample(mode, bytes_a_sample):
    """The bound of 10^8 samples in 8 GB, on 2 x 10^6, besides 16 bytes a sample of columns."""
    row = np.arange(2_000_000, dtype=np.int32)
    method = (row // 32 % 5).astype(np.int16)
    data = Columns(
        shard=row // 1000,
        label=(method > 0).astype(np.int8),
        method=method,
        group=row // 160,
        group_exact=np.ones(len(row), bool),
        frame=row % 32,
    )
    tracemalloc.start()
    plan = epoch_plan(data, PlanSpec(0, 512, mode, 16, 8), 0, lazy=True)
    plan.ids[len(plan) // 2]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / len(row) < bytes_a_sample and kept / len(row) < 16
