from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dfdet.data.hashing import chain, uniforms
from dfdet.data.plan import (
    PlanSpec,
    batches_per_epoch,
    epoch_plan,
    fingerprint,
    rank_slice,
    sequential_plan,
    unpaired,
)
from dfdet.errors import ConfigError, ShardSetError

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@dataclass(frozen=True, eq=False)
class Columns:
    shard: np.ndarray
    label: np.ndarray
    method: np.ndarray
    group: np.ndarray
    group_exact: np.ndarray
    frame: np.ndarray


def columns(groups: int, frames: int, methods: int, per_shard: int = 7, seed: int = 0) -> Columns:
    """Each group: a real and ``methods`` fakes; fakes lose some frames; some groups are not exact."""
    group, method, frame = np.indices((groups, methods + 1, frames)).reshape(3, -1)
    kept = (method == 0) | (uniforms(chain(seed, 1, group, method, frame), 1)[:, 0] < 0.8)
    group, method, frame = group[kept], method[kept], frame[kept]
    exact = uniforms(chain(seed, 2, np.arange(groups)), 1)[:, 0] < 0.8
    exact[0] = True
    order = np.arange(len(group))
    return Columns(
        shard=(order // per_shard).astype(np.int32),
        label=(method > 0).astype(np.int8),
        method=method.astype(np.int16),
        group=group.astype(np.int32),
        group_exact=exact[group],
        frame=frame.astype(np.int32),
    )


DATA = st.builds(
    columns,
    groups=st.integers(1, 8),
    frames=st.integers(1, 5),
    methods=st.integers(1, 4),
    per_shard=st.integers(1, 20),
    seed=st.integers(0, 99),
)


MODES = ("single", "pair", "rotate")


@st.composite
def specs(
    draw: st.DrawFn, modes: tuple[str, ...] = ("single", "pair", "rotate"), **fixed: object
) -> PlanSpec:
    lanes = draw(st.sampled_from([1, 2, 4]))
    values = {
        "seed": draw(st.integers(0, 2**63 - 1)),
        "global_batch": 2 * lanes * draw(st.integers(1, 3)),
        "mode": draw(st.sampled_from(modes)),
        "block_shards": draw(st.integers(0, 4)),
        "lanes": lanes,
        "tail": draw(st.sampled_from(["drop", "mask"])),
    }
    return PlanSpec(**{**values, **fixed})


def plan_or_skip(data: Columns, spec: PlanSpec, epoch: int = 0):
    try:
        return epoch_plan(data, spec, epoch)
    except ShardSetError:
        assume(False)


def pairable(data: Columns) -> np.ndarray:
    labels: dict[int, set[int]] = {}
    for group, label, exact in zip(data.group, data.label, data.group_exact, strict=True):
        if exact:
            labels.setdefault(int(group), set()).add(int(label))
    return np.array([labels.get(int(group)) == {0, 1} for group in data.group])


@FAST
@given(DATA, specs(modes=("single",), tail="mask"), st.integers(0, 5))
def test_single_has_every_sample_exactly_once(data, spec, epoch):
    plan = epoch_plan(data, spec, epoch)
    assert sorted(plan.ids[plan.valid]) == list(range(len(data.label)))


@FAST
@given(DATA, specs(modes=("pair",), tail="mask"), st.integers(0, 5))
def test_pair_has_every_pairable_fake_exactly_once(data, spec, epoch):
    plan = plan_or_skip(data, spec, epoch)
    ids = plan.ids[plan.valid]
    assert sorted(ids[data.label[ids] == 1]) == list(np.flatnonzero(pairable(data) & (data.label == 1)))


@FAST
@given(DATA, specs(modes=("rotate",), tail="mask"), st.integers(0, 5))
def test_rotate_has_every_pairable_real_exactly_once(data, spec, epoch):
    plan = plan_or_skip(data, spec, epoch)
    ids = plan.ids[plan.valid]
    assert sorted(ids[data.label[ids] == 0]) == list(np.flatnonzero(pairable(data) & (data.label == 0)))


@FAST
@given(DATA, specs(tail="drop"), st.integers(0, 5))
def test_drop_repeats_no_unit_and_leaves_less_than_a_batch(data, spec, epoch):
    plan = plan_or_skip(data, spec, epoch)
    units = plan.ids.reshape(-1, spec.unit_size)
    primary = units[:, 0] if spec.mode != "pair" else units[:, 1]
    masked = plan_or_skip(data, replace(spec, tail="mask"), epoch)
    assert plan.valid.all()
    assert len(set(primary.tolist())) == len(primary)
    assert 0 <= masked.valid.sum() - plan.ids.size < spec.global_batch
    assert (masked.ids[: len(plan)] == plan.ids).all()


@FAST
@given(DATA, specs(modes=("pair", "rotate")), st.integers(0, 5))
def test_pairs_are_a_real_and_a_fake_of_one_exact_group_in_neighbouring_columns(data, spec, epoch):
    plan = plan_or_skip(data, spec, epoch)
    real, fake = plan.ids[plan.valid].reshape(-1, 2).T
    assert (data.label[real] == 0).all() and (data.label[fake] == 1).all()
    assert (data.group[real] == data.group[fake]).all()
    assert data.group_exact[real].all() and data.group_exact[fake].all()
    assert (plan.valid[:, ::2] == plan.valid[:, 1::2]).all()


@FAST
@given(DATA, specs(modes=("pair", "rotate")), st.integers(0, 5))
def test_pairs_are_of_one_frame_wherever_the_group_has_it(data, spec, epoch):
    plan = plan_or_skip(data, spec, epoch)
    for real, fake in plan.ids[plan.valid].reshape(-1, 2):
        if data.frame[real] == data.frame[fake]:
            continue
        query, found = (fake, real) if spec.mode == "pair" else (real, fake)
        cell = (data.group == data.group[found]) & (data.method == data.method[found])
        assert data.frame[query] not in data.frame[cell]


@FAST
@given(DATA, specs(), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 3]))
def test_slices_of_any_world_and_accumulation_make_up_the_global_batches(data, spec, world, accumulation):
    spec = replace(spec, global_batch=2 * world * accumulation, lanes=1, tail="mask")
    plan = plan_or_skip(data, spec)
    for row, valid in zip(plan.ids, plan.valid, strict=True):
        ranks = [rank_slice(row, rank, world) for rank in range(world)]
        micro = [rank_slice(part, step, accumulation) for part in ranks for step in range(accumulation)]
        assert np.concatenate(ranks).tolist() == np.concatenate(micro).tolist() == row.tolist()
        if spec.mode != "single" and valid.all():
            assert all((data.label[part] == [0, 1]).all() for part in micro)


@FAST
@given(DATA, specs(), st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_resume_at_any_batch_on_another_world_gives_the_same_rest(data, spec, stop, before, after):
    spec = replace(spec, global_batch=8, lanes=1)
    first, again = plan_or_skip(data, spec), plan_or_skip(data, spec)
    stop %= len(first) + 1
    done = [rank_slice(row, rank, before) for row in first.ids[:stop] for rank in range(before)]
    rest = [rank_slice(row, rank, after) for row in again.ids[stop:] for rank in range(after)]
    assert np.concatenate([*done, *rest]).tolist() == first.ids.reshape(-1).tolist()


@FAST
@given(DATA, specs())
def test_every_epoch_has_the_promised_number_of_batches(data, spec):
    plans = [plan_or_skip(data, spec, epoch) for epoch in range(4)]
    assert {len(plan) for plan in plans} == {batches_per_epoch(data, spec)}
    assert all(plan.ids.shape == (len(plan), spec.global_batch) == plan.valid.shape for plan in plans)
    assert all(plan.ids.dtype == np.int64 for plan in plans)


def test_epochs_and_seeds_give_other_orders_and_the_same_arguments_the_same():
    data = columns(8, 5, 3)
    spec = PlanSpec(seed=1, global_batch=4, mode="single")
    orders = [
        epoch_plan(data, replace(spec, seed=seed), epoch).ids.tobytes()
        for seed in (1, 2, 3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert epoch_plan(data, spec, 0).ids.tobytes() == orders[0]


def test_rotate_meets_every_method_of_its_group_in_as_many_epochs_and_all_in_one_epoch():
    data = replace(columns(30, 1, 4), group_exact=np.ones(len(columns(30, 1, 4).label), bool))
    spec = PlanSpec(seed=3, global_batch=2, mode="rotate")
    plans = [epoch_plan(data, spec, epoch).ids for epoch in range(4)]
    for group in range(30):
        have = set(data.method[(data.group == group) & (data.label == 1)].tolist())
        met = {int(data.method[fake]) for ids in plans for real, fake in ids if data.group[real] == group}
        assert met == have
    assert all(len(Counter(data.method[ids[:, 1]].tolist())) == 4 for ids in plans)


def test_a_real_chosen_by_hash_changes_with_the_epoch():
    data = Columns(
        shard=np.zeros(9, np.int32),
        label=np.array([0] * 8 + [1], np.int8),
        method=np.array([0] * 8 + [1], np.int16),
        group=np.zeros(9, np.int32),
        group_exact=np.ones(9, bool),
        frame=np.arange(9, dtype=np.int32),
    )
    spec = PlanSpec(seed=0, global_batch=2, mode="pair")
    assert len({int(epoch_plan(data, spec, epoch).ids[0, 0]) for epoch in range(20)}) > 3


def test_unpaired_counts_what_pairing_leaves_out():
    data = columns(40, 3, 2)
    assert unpaired(data, "single") == 0
    assert unpaired(data, "pair") == unpaired(data, "rotate") == int((~pairable(data)).sum()) > 0


def test_blocks_keep_reads_within_a_few_shards_at_a_time():
    data = columns(40, 5, 3, per_shard=10)
    shards = int(data.shard.max()) + 1
    spec = PlanSpec(seed=0, global_batch=2, mode="single", block_shards=4)
    order = data.shard[epoch_plan(data, spec, 0).ids.reshape(-1)]
    seen = [len(set(order[low : low + 40].tolist())) for low in range(0, len(order) - 40, 40)]
    assert shards > 40 and max(seen) <= 8
    assert order[:40].tolist() != sorted(order[:40].tolist())


def test_lanes_give_each_rank_mostly_its_own_shards():
    data = columns(40, 5, 3, per_shard=10)
    spec = PlanSpec(seed=0, global_batch=8, mode="single", block_shards=2, lanes=4)
    plan = epoch_plan(data, spec, 0)
    touched = [
        set(data.shard[plan.ids[:, 2 * rank : 2 * rank + 2]].reshape(-1).tolist()) for rank in range(4)
    ]
    shards = int(data.shard.max()) + 1
    assert sum(map(len, touched)) < 1.3 * shards


def test_golden_plans_survive_upgrades():
    data = columns(6, 4, 3)
    digests = {
        mode: hashlib.sha256(
            epoch_plan(data, PlanSpec(11, 4, mode, block, lanes, "mask"), 2).ids.astype("<i8").tobytes()
        ).hexdigest()[:16]
        for mode, block, lanes in [("single", 0, 1), ("pair", 2, 1), ("rotate", 0, 2)]
    }
    assert digests == GOLDEN_PLANS
    assert epoch_plan(columns(3, 2, 1, seed=3), PlanSpec(0, 4, "single"), 0).ids.tolist() == GOLDEN_ORDER


def test_sequential_plan_masks_the_tail():
    plan = sequential_plan(5, 2)
    assert plan.ids.tolist() == [[0, 1], [2, 3], [4, 0]]
    assert plan.valid.tolist() == [[True, True], [True, True], [True, False]]


def test_fingerprint_knows_other_data_and_every_field():
    spec = PlanSpec(seed=1, global_batch=8, mode="pair")
    others = [
        fingerprint("b", spec),
        *(
            fingerprint("a", replace(spec, **change))
            for change in (
                {"seed": 2},
                {"global_batch": 4},
                {"mode": "rotate"},
                {"block_shards": 1},
                {"lanes": 2},
                {"tail": "mask"},
            )
        ),
    ]
    assert fingerprint("a", spec) == fingerprint("a", replace(spec)) not in others
    assert len(set(others)) == len(others)


def test_nothing_to_pair_is_refused_with_the_remedy():
    data = replace(columns(4, 2, 2), group_exact=np.zeros(len(columns(4, 2, 2).label), bool))
    for mode in ("pair", "rotate"):
        with pytest.raises(ShardSetError, match=rf"sampling={mode}: no fake has a real .*sampling single"):
            epoch_plan(data, PlanSpec(0, 4, mode), 0)


def test_fewer_units_than_a_batch_are_refused_with_the_number():
    data = columns(1, 2, 1)
    n = len(data.label)
    for call in (lambda spec: epoch_plan(data, spec, 0), lambda spec: batches_per_epoch(data, spec)):
        with pytest.raises(ShardSetError, match=rf"global_batch=64.*only {n} samples.*global_batch {n} "):
            call(PlanSpec(0, 64, "single"))
    assert len(epoch_plan(data, PlanSpec(0, 64, "single", tail="mask"), 0)) == 1


def test_batches_that_pairs_lanes_or_ranks_cannot_share_are_refused():
    with pytest.raises(ConfigError, match=r"global_batch=7.*multiple of 2; set --data.global_batch 6"):
        PlanSpec(0, 7, "pair")
    with pytest.raises(ConfigError, match="lanes=3"):
        PlanSpec(0, 8, "single", lanes=3)
    with pytest.raises(ConfigError, match="multiple of the workers"):
        rank_slice(np.arange(8), 0, 3)


def test_planning_imports_neither_torch_nor_ray():
    code = (
        "import sys; import dfdet.data.plan, dfdet.data.index;"
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GOLDEN_PLANS = {"single": "bf69ea05083e5c9a", "pair": "dd80c18f48207f2b", "rotate": "9aa08534035822c2"}
GOLDEN_ORDER = [[2, 1, 9, 5], [6, 3, 4, 8]]
