from __future__ import annotations

import gc
import logging
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from dfdet.config import Augment
from dfdet.data.buffers import BufferPool
from dfdet.data.decode import decode
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import EpochPlan, PlanSpec, epoch_plan, sequential_plan
from dfdet.errors import ConfigError, DamagedSampleError, TrainingError
from dfdet.schema import CropRecipe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, make_set):
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def index(manifest) -> Index:
    return open_sets([manifest])


def loader_of(index: Index, **changes) -> Loader:
    options = {
        "crop_scale": 1.3,
        "augment": None,
        "seed": 5,
        "threads": 2,
        "prefetch": 2,
        "on_damage": "raise",
        "max_damaged": 100,
    }
    return Loader(index, **{**options, **changes})


def pixels(index: Index, plan: EpochPlan, world: int = 1, start: int = 0, epoch: int = 0, **changes):
    """Global batches put together from all ranks, [batches, B, S, S, 3]."""
    parts = []
    for rank in range(world):
        with loader_of(index, **changes) as loader:
            batches = loader.batches(plan, epoch=epoch, rank=rank, world=world, start=start)
            parts.append([batch.images.clone() for batch in batches])
    return torch.stack([torch.cat(row) for row in zip(*parts, strict=True)])


def stored_image(index: Index, sample: int) -> np.ndarray:
    with index.shards[index.shard[sample]].open("rb") as tar:
        tar.seek(index.offset[sample])
        return decode(tar.read(index.size[sample]))


def test_batches_are_the_plans_samples_cut_from_the_middle(index):
    plan = sequential_plan(len(index), 8)
    with loader_of(index) as loader:
        assert loader.side == 52
        for row, batch in zip(range(len(plan)), loader.batches(plan, epoch=0, rank=0, world=1), strict=True):
            assert batch.ids.tolist() == plan.ids[row].tolist()
            assert batch.valid.tolist() == plan.valid[row].tolist()
            assert batch.labels.tolist() == index.label[plan.ids[row]].tolist()
            assert batch.labels.dtype == batch.sizes.dtype == torch.int64
            assert batch.images.shape == (8, 52, 52, 3) and batch.sizes.tolist() == [52] * 8
            for column in np.flatnonzero(plan.valid[row]):
                expected = stored_image(index, int(plan.ids[row, column]))[6:58, 6:58]
                assert (batch.images[column].numpy() == expected).all()
            assert not batch.images[~batch.valid].any()


def test_whole_images_are_the_stored_ones(index):
    """JPEGs are then decoded straight into the batch."""
    plan = sequential_plan(len(index), 8)
    with loader_of(index, crop_scale=1.6) as loader:
        for row, batch in zip(range(len(plan)), loader.batches(plan, epoch=0, rank=0, world=1), strict=True):
            for column in np.flatnonzero(plan.valid[row]):
                expected = stored_image(index, int(plan.ids[row, column]))
                assert (batch.images[column].numpy() == expected).all()
            assert not batch.images[~batch.valid].any()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_augmented_pixels_do_not_depend_on_world_or_threads(index, world, threads):
    plan = epoch_plan(index, PlanSpec(1, 8, "pair"), 3)
    expected = pixels(index, plan, augment=Augment(), epoch=3)
    found = pixels(index, plan, world, augment=Augment(), epoch=3, threads=threads, prefetch=1)
    assert torch.equal(found, expected)


def test_a_resume_gives_the_same_rest(index):
    plan = epoch_plan(index, PlanSpec(1, 4, "single"), 0)
    whole = pixels(index, plan, augment=Augment())
    assert torch.equal(pixels(index, plan, world=2, start=3, augment=Augment()), whole[3:])
    assert len(list(loader_of(index).batches(plan, epoch=0, rank=0, world=1, start=len(plan)))) == 0


def test_augmentation_changes_with_epoch_and_seed_and_is_off_at_strength_0(index):
    plan = sequential_plan(8, 8)
    plain = pixels(index, plan)
    variants = [
        pixels(index, plan, augment=Augment()),
        pixels(index, plan, augment=Augment(), epoch=1),
        pixels(index, plan, augment=Augment(), seed=6),
    ]
    for number, variant in enumerate(variants):
        assert not torch.equal(variant, plain)
        assert not any(torch.equal(variant, other) for other in variants[:number])
    assert torch.equal(pixels(index, plan, augment=Augment(strength=0)), plain)


def test_one_sample_twice_in_a_batch_is_augmented_twice(index):
    plan = EpochPlan(np.zeros((1, 2), np.int64), np.ones((1, 2), bool))
    first, second = pixels(index, plan, augment=Augment())[0]
    assert not torch.equal(first, second)


def test_a_batch_stays_valid_as_long_as_it_is_held(index):
    plan = sequential_plan(len(index), 4)
    with loader_of(index) as loader:
        held = list(loader.batches(plan, epoch=0, rank=0, world=1))
        list(loader.batches(plan, epoch=0, rank=0, world=1))
    assert torch.equal(torch.stack([batch.images for batch in held]), pixels(index, plan))


def test_buffers_are_used_again_when_the_last_view_is_gone():
    pool = BufferPool()
    first = pool.take((2, 4, 4, 3))
    address, view = first.data_ptr(), first[1:, :2]
    del first
    gc.collect()
    assert pool.take((2, 4, 4, 3)).data_ptr() != address
    del view
    gc.collect()
    assert address in {tensor.data_ptr() for tensor in [pool.take((2, 4, 4, 3)) for _ in range(2)]}


def test_closing_early_ends_the_threads(index):
    plan = sequential_plan(len(index), 2)
    with loader_of(index, prefetch=8, threads=3) as loader:
        for end in ("close", "delete", "error"):
            batches = loader.batches(plan, epoch=0, rank=0, world=1)
            next(batches)
            assert any("dfdet-decode" in thread.name for thread in threading.enumerate())
            if end == "close":
                batches.close()
            elif end == "error":
                with pytest.raises(RuntimeError), closing(batches):
                    raise RuntimeError
            del batches
            gc.collect()
            assert not any("dfdet-decode" in thread.name for thread in threading.enumerate())


def test_crop_scale_beyond_the_stored_one_is_refused_naming_both(index):
    with pytest.raises(ConfigError, match=r"crop_scale=1.7: .* stored crop scale 1.6 of demo-0"):
        loader_of(index, crop_scale=1.7)
    assert loader_of(index, crop_scale=1.6).side == 64


def test_unknown_scale_gives_the_middle_square(tmp_path, make_set):
    index = open_sets([make_set(tmp_path, crop=CropRecipe(), shape=(80, 50), exts=("png",))])
    loader = loader_of(index, crop_scale=4.0)
    batch = next(loader.batches(sequential_plan(2, 2), epoch=0, rank=0, world=1))
    assert (batch.images[1].numpy() == stored_image(index, 1)[:, 15:65]).all()


def test_sets_of_several_sizes_share_a_buffer(tmp_path, make_set):
    small = make_set(tmp_path, "small", dataset="small", shape=(32, 32), exts=("png",), groups=1)
    large = make_set(
        tmp_path,
        "large",
        dataset="large",
        crop=CropRecipe(scale=1.3),
        shape=(70, 60),
        exts=("png",),
        groups=1,
    )
    index = open_sets([small, large], mix_crops=True)
    with loader_of(index, augment=Augment()) as loader:
        batch = next(loader.batches(sequential_plan(18, 18), epoch=0, rank=0, world=1))
    assert loader.side == 60
    assert batch.sizes.tolist() == [26] * 9 + [60] * 9
    assert batch.images[0, :26, :26].any()
    assert not batch.images[:9, 26:].any() and not batch.images[:9, :, 26:].any()


def test_a_huge_crop_is_shrunk_to_the_bound(tmp_path, make_set):
    index = open_sets([make_set(tmp_path, crop=CropRecipe(), shape=(300, 200), exts=("jpg",), groups=1)])
    with loader_of(index, max_side=64) as loader:
        batch = next(loader.batches(sequential_plan(2, 2), epoch=0, rank=0, world=1))
    assert batch.images.shape[1] == 64 and batch.sizes.tolist() == [64, 64]


class TestDamage:
    """Sample 4 has a flipped bit, the last ones of the last tar are gone."""

    @pytest.fixture
    def damaged(self, tmp_path, make_set) -> Index:
        index = open_sets([make_set(tmp_path)])
        flip_bit(index, 4)
        with index.shards[-1].open("r+b") as tar:
            tar.truncate(int(index.offset[-2]) + 5)
        return index

    def test_raise_names_key_shard_offset_and_reason(self, damaged):
        plan = sequential_plan(len(damaged), 4)
        with pytest.raises(DamagedSampleError) as error, loader_of(damaged) as loader:
            list(loader.batches(plan, epoch=0, rank=0, world=1))
        text = str(error.value)
        assert damaged.keys([4])[0] in text and str(damaged.shards[0]) in text
        assert f"byte {damaged.offset[4]} " in text and "crc32" in text and "\n" not in text

    def test_batches_before_the_damage_still_come(self, damaged):
        batches = loader_of(damaged).batches(sequential_plan(36, 4), epoch=0, rank=0, world=1)
        assert next(batches).ids.tolist() == [0, 1, 2, 3]
        with pytest.raises(DamagedSampleError):
            next(batches)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_skip_masks_zeros_counts_and_logs(self, damaged, threads, caplog):
        with loader_of(damaged, on_damage="skip", threads=threads, augment=Augment()) as loader:
            batches = list(loader.batches(sequential_plan(36, 4), epoch=0, rank=0, world=1))
        valid = torch.cat([batch.valid for batch in batches])
        assert torch.nonzero(~valid).flatten().tolist() == [4, 34, 35]
        images = torch.cat([batch.images for batch in batches])
        assert not images[~valid].any() and images[valid].flatten(1).any(dim=1).all()
        assert loader.damaged == {"crc": 1, "short": 2}
        assert len(caplog.records) == 3 and caplog.records[0].levelno == logging.WARNING

    def test_skipping_stops_past_the_bound(self, damaged):
        plan = sequential_plan(36, 4)
        with loader_of(damaged, on_damage="skip", max_damaged=3) as loader:
            assert len(list(loader.batches(plan, epoch=0, rank=0, world=1))) == 9
            with pytest.raises(TrainingError, match=r"4 damaged samples .*data.max_damaged=3"):
                list(loader.batches(plan, epoch=1, rank=0, world=1))

    def test_a_tar_that_vanishes_is_damage(self, damaged):
        damaged.shards[0].unlink()
        with loader_of(damaged, on_damage="skip") as loader:
            list(loader.batches(sequential_plan(4, 4), epoch=0, rank=0, world=1))
        assert loader.damaged == {"read": 4}


def flip_bit(index: Index, sample: int) -> None:
    place = int(index.offset[sample] + index.size[sample] // 2)
    with index.shards[index.shard[sample]].open("r+b") as tar:
        tar.seek(place)
        value = tar.read(1)[0]
        tar.seek(place)
        tar.write(bytes([value ^ 4]))


def test_every_flipped_bit_is_found(tmp_path, make_set):
    index = open_sets([make_set(tmp_path, groups=2)])
    for sample in range(len(index)):
        flip_bit(index, sample)
    with loader_of(index, on_damage="skip") as loader:
        batches = list(loader.batches(sequential_plan(len(index), 6), epoch=0, rank=0, world=1))
    assert loader.damaged == {"crc": len(index)}
    assert not any(batch.valid.any() for batch in batches)


@pytest.mark.parametrize("ext", ["png", "jpg"])
@pytest.mark.parametrize("said", [63, 65])
@pytest.mark.parametrize("crop_scale", [1.3, 1.6])
def test_an_image_unlike_its_index_is_damage(tmp_path, make_set, ext, said, crop_scale):
    index = open_sets([make_set(tmp_path, exts=(ext,))])
    other = np.where(np.arange(len(index)) == 3, said, 64)
    index = replace(index, width=other, height=other)
    with loader_of(index, on_damage="skip", crop_scale=crop_scale) as loader:
        batch = next(loader.batches(sequential_plan(4, 4), epoch=0, rank=0, world=1))
    assert batch.valid.tolist() == [True, True, True, False] and loader.damaged == {"size": 1}
    assert not batch.images[3].any()
