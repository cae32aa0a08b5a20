"""Clips as the units of a plan: every frame once, of one video, on one rank, whatever the ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dfdet.config import Augment
from dfdet.data.clips import Times, clips_in_order, clips_of
from dfdet.data.hashing import chain
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import (
    EpochPlan,
    PlanSpec,
    batches_per_epoch,
    epoch_plan,
    evaluation_batches,
    evaluation_plan,
    fingerprint,
    rank_slice,
)
from dfdet.errors import ConfigError, ShardSetError

FAST = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@dataclass(frozen=True, eq=False)
class Columns:
    shard: np.ndarray
    label: np.ndarray
    video: np.ndarray
    frame: np.ndarray


def columns(lengths: list[int], seed: int = 0, per_shard: int = 2) -> Columns:
    """Videos of these lengths, every third frame of them, their rows in no order."""
    video = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([3 * np.arange(length) for length in lengths]) + 5
    rows = chain(seed, np.arange(len(video))).argsort()
    video, frame = video[rows].astype(np.int32), frame[rows].astype(np.int32)
    return Columns((video // per_shard).astype(np.int32), (video % 2).astype(np.int8), video, frame)


DATA = st.builds(
    columns,
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)


@st.composite
def specs(draw: st.DrawFn, tail: str = "mask") -> PlanSpec:
    frames, lanes = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2]))
    return PlanSpec(
        seed=draw(st.integers(0, 2**63 - 1)),
        global_batch=frames * lanes * draw(st.integers(1, 3)),
        mode="clip",
        block_shards=draw(st.integers(0, 2)),
        lanes=lanes,
        tail=tail,  # type: ignore[arg-type]
        clip_frames=frames,
    )


def clips_in(plan: EpochPlan, spec: PlanSpec) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of the clips that have a frame, [clips, T] each."""
    ids, valid = (
        np.stack([rows[number] for number in range(len(plan))]).reshape(-1, spec.clip_frames)
        for rows in (plan.ids, plan.valid)
    )
    return ids[valid.any(1)], valid[valid.any(1)]


@FAST
@given(DATA, specs(), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_frame_exactly_once_in_clips_of_one_video(data, spec, epoch, lazy):
    ids, valid = clips_in(epoch_plan(data, spec, epoch, lazy=lazy), spec)
    assert sorted(ids[valid]) == list(range(len(data.label)))
    assert (data.video[ids] == data.video[ids[:, :1]]).all()
    for video, length in Counter(data.video.tolist()).items():
        assert (data.video[ids[:, 0]] == video).sum() == -(-length // spec.clip_frames)


@FAST
@given(DATA, specs(), st.integers(0, 3))
def test_frames_of_a_clip_are_in_order_spread_over_the_video_and_padding_repeats_its_first(data, spec, epoch):
    ids, valid = clips_in(epoch_plan(data, spec, epoch), spec)
    for clip, mask in zip(ids, valid, strict=True):
        place = (data.frame[clip] - 5) // 3
        count = int((data.video == data.video[clip[0]]).sum())
        stride = -(-count // spec.clip_frames)
        assert mask[0] and (clip[~mask] == clip[0]).all()
        # slot i holds one of the frames i m to i m + m - 1
        assert (place[mask] // stride == np.flatnonzero(mask)).all()


@FAST
@given(DATA, specs(), st.integers(0, 2))
def test_lazy_batches_are_those_of_the_whole_plan(data, spec, epoch):
    whole, lazy = (epoch_plan(data, spec, epoch, lazy=flag) for flag in (False, True))
    assert len(whole) == len(lazy) == batches_per_epoch(data, spec)
    for number in reversed(range(len(whole))):
        assert np.array_equal(lazy.ids[number], whole.ids[number])
        assert np.array_equal(lazy.valid[number], whole.valid[number])


@FAST
@given(DATA, specs(tail="drop"), st.integers(1, 4))
def test_no_rank_gets_a_part_of_a_clip(data, spec, world):
    assume(spec.units_per_batch % world == 0)
    try:
        plan = epoch_plan(data, spec, 1)
    except ShardSetError:
        assume(False)
    for row in plan.ids:
        parts = [rank_slice(row, rank, world).reshape(-1, spec.clip_frames) for rank in range(world)]
        assert all((data.video[part] == data.video[part[:, :1]]).all() for part in parts)
        assert np.array_equal(np.concatenate(parts).reshape(-1), row)


def test_clips_of_a_video_take_other_frames_in_the_next_epoch():
    data = columns([16])
    found = [
        {frozenset(clip.tolist()) for clip in clips_of(data, 4, 7, epoch).samples(np.arange(4))}
        for epoch in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_evaluation_takes_every_mth_frame_video_by_video():
    data = columns([9, 2])
    clips = clips_in_order(data, 4)
    ids, valid = clips.samples(np.arange(4)), clips.valid(np.arange(4))
    place = [((data.frame[clip[mask]] - 5) // 3).tolist() for clip, mask in zip(ids, valid, strict=True)]
    assert place == [[0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 1]]
    assert data.video[ids[:, 0]].tolist() == [0, 0, 0, 1]


@FAST
@given(DATA, st.integers(1, 5), st.integers(1, 12))
def test_an_evaluation_has_every_frame_once_and_whole_clips_in_each_batch(data, frames, batch):
    plan = evaluation_plan(data, batch, frames)
    assert sorted(plan.ids[plan.valid]) == list(range(len(data.label)))
    assert len(plan) == evaluation_batches(data, batch, frames)
    assert plan.ids.shape[1] == max(1, batch // frames) * frames
    assert plan.clip_frames == frames


def test_without_clips_an_evaluation_goes_through_the_index():
    plan = evaluation_plan(columns([5]), 2)
    assert plan.ids[plan.valid].tolist() == [0, 1, 2, 3, 4]
    assert (len(plan), plan.clip_frames) == (evaluation_batches(columns([5]), 2), 0) == (3, 0)


def test_order_and_clips_are_the_same_on_every_build():
    spec = PlanSpec(3, 8, "clip", block_shards=2, tail="mask", clip_frames=4)
    assert epoch_plan(columns([5, 3, 9]), spec, 1).ids[:2].tolist() == GOLDEN


GOLDEN = [[0, 15, 1, 0, 2, 7, 5, 2], [9, 4, 8, 9, 12, 10, 6, 12]]


def test_the_clip_is_part_of_the_fingerprint_and_older_ones_stay_as_they_were():
    def of(**values) -> str:
        return fingerprint("d", PlanSpec(0, 12, **values))

    assert of(mode="clip", clip_frames=3) != of(mode="clip", clip_frames=4)
    assert of(mode="single") == "4017cef8154a739cf85586c668220be94e47799fab79031d8e55172827c06478"


def test_impossible_batches_name_the_remedy():
    with pytest.raises(ConfigError, match=r"positive multiple of 3; set --data\.global_batch 6"):
        PlanSpec(0, 8, "clip", clip_frames=3)
    with pytest.raises(ShardSetError, match=r"only 2 clips an epoch \(6 samples.*global_batch 6 or smaller"):
        epoch_plan(columns([3, 2]), PlanSpec(0, 9, "clip", clip_frames=3), 0)


def test_times_run_from_0_to_1_over_each_video():
    data = columns([3, 1])
    times = Times(data)(np.arange(4))
    assert times[np.lexsort((data.frame, data.video))].tolist() == [0.0, 0.5, 1.0, 0.0]


@pytest.fixture
def index(signal_sets: dict[str, Path]) -> Index:
    return open_sets([signal_sets["test"]])


def loader_of(index: Index, augment: Augment | None = None) -> Loader:
    return Loader(
        index,
        crop_scale=1.3,
        augment=augment,
        seed=0,
        threads=1,
        prefetch=1,
        on_damage="raise",
        max_damaged=0,
    )


SPEC = PlanSpec(1, 12, "clip", clip_frames=3)


def test_a_resume_on_other_ranks_goes_on_with_the_same_clips(index):
    plan = epoch_plan(index, SPEC, 2)
    with loader_of(index) as loader:
        alone = list(loader.batches(plan, epoch=2, rank=0, world=1))
        resumed = [list(loader.batches(plan, epoch=2, rank=rank, world=2, start=3)) for rank in range(2)]
    assert len(alone) == len(plan) > 4
    for number, batches in enumerate(zip(*resumed, strict=True), start=3):
        assert np.array_equal(np.concatenate([batch.ids for batch in batches]), alone[number].ids)
        found = [time for batch in batches for time in batch.times.tolist()]
        assert found == alone[number].times.tolist()


def test_padding_is_not_valid_in_batches_and_has_the_label_of_its_clip(index):
    plan = evaluation_plan(index, 12, 3)  # videos of 4 frames: clips of 2 frames and padding
    with loader_of(index) as loader:
        batch = next(iter(loader.batches(plan, epoch=0, rank=0, world=1)))
    assert batch.valid.tolist() == [True, True, False] * 4
    assert (batch.labels.reshape(4, 3) == batch.labels.reshape(4, 3)[:, :1]).all()
    assert batch.images.reshape(4, 3, -1)[:, 2].sum() == 0


def test_frames_of_a_clip_are_augmented_alike(index):
    """With every frame the same image, a clip's frames stay equal, and clips differ."""
    plan = EpochPlan(np.zeros((1, 6), np.int64), np.ones((1, 6), bool), 3)
    with loader_of(index, Augment(rotate_degrees=45)) as loader:
        images = next(iter(loader.batches(plan, epoch=0, rank=0, world=1))).images.reshape(2, 3, -1)
    assert (images == images[:, :1]).all()
    assert (images[0, 0] != images[1, 0]).any()
