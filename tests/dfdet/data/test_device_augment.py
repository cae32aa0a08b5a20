from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfdet.config import Augment
from dfdet.data.augment import Parameters, apply, draw_parameters
from dfdet.data.device_augment import apply_batched, finish
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Batch, Loader
from dfdet.data.plan import PlanSpec, epoch_plan
from dfdet.schema import CropRecipe
from tests.dfdet.data.pictures import picture
from tests.dfdet.data.test_augment import NOTHING

FIRST = Augment(jpeg_first=True, blur=0.5)


def buffer(sides: list[int]) -> torch.Tensor:
    """Pictures and noise of several sizes in the top left of a batch."""
    images = np.zeros((len(sides), max(sides), max(sides), 3), np.uint8)
    for row, side in enumerate(sides):
        noise = np.random.default_rng(row).integers(0, 256, (side, side, 3), np.uint8)
        images[row, :side, :side] = picture(row, side, side) if row % 2 else noise
    return torch.from_numpy(images)


def differing(sides: list[int], parameters: list[Parameters], device: str = "cpu") -> float:
    """Share of values that differ from the threads' chain; what lies outside of crops must be zero."""
    images = buffer(sides)
    before = images.clone()
    found = apply_batched(images.to(device), torch.tensor(sides), parameters).cpu()
    assert torch.equal(images, before) and found.dtype == torch.uint8
    unequal = 0
    for row, (side, p) in enumerate(zip(sides, parameters, strict=True)):
        expected = apply(images[row, :side, :side].numpy(), replace(p, quality=None))
        unequal += int((found[row, :side, :side].numpy() != expected).sum())
        assert not found[row, side:].any() and not found[row, :, side:].any()
    return unequal / sum(side * side * 3 for side in sides)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": True},
        {"shift_x": 0.07, "shift_y": -0.04},
        {"sigma_px": 0.1},
        {"sigma_px": 0.73},
        {"sigma_px": 2.0},
        {"brightness": 0.9},
        {"brightness": 1.09},
        {"contrast": 0.91},
        {"contrast": 1.1, "brightness": 0.93},
        {"contrast": 1.1, "brightness": 0.93, "contrast_first": True},
    ],
)
def test_each_step_is_the_threads_to_the_bit(change):
    assert differing([96, 64, 33, 1, 3, 96], [replace(NOTHING, **change)] * 6) == 0


@pytest.mark.parametrize("change", [{"degrees": -9.3}, {"degrees": 4.0, "flip": True}, {"scale": 1.07}])
def test_affine_is_the_threads_but_for_ties(change):
    assert differing([250, 96, 97, 64], [replace(NOTHING, **change)] * 4) < 1e-3


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_the_whole_is_the_threads_but_for_one_value_in_two_thousand(strength):
    drawn = draw_parameters(FIRST.model_copy(update={"strength": strength}), 4, 1, np.arange(120))
    assert differing([260] * 20, drawn[:20]) < 5e-4
    assert differing([128, 97, 40, 16] * 30, drawn) < 5e-4


def test_a_sample_does_not_depend_on_its_batch():
    drawn = draw_parameters(FIRST, 0, 0, np.arange(8))
    images, sizes = buffer([64] * 8), torch.full((8,), 64)
    whole = apply_batched(images, sizes, drawn)
    for row in range(8):
        assert torch.equal(
            apply_batched(images[row : row + 1], sizes[:1], drawn[row : row + 1])[0], whole[row]
        )


def test_masked_samples_stay_black():
    drawn = draw_parameters(FIRST, 0, 0, np.arange(8))
    assert not apply_batched(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.full((8,), 32), drawn).any()


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_set) -> Index:
    folder = tmp_path_factory.mktemp("sets")
    small = make_set(folder, "small", dataset="small", shape=(40, 40), groups=1)
    large = make_set(folder, "large", dataset="large", crop=CropRecipe(scale=1.3), shape=(60, 60), groups=1)
    return open_sets([small, large], mix_crops=True)


def batches(index: Index, world: int, *, on_device: bool) -> list[list[Batch]]:
    """Finished batches of an epoch, by rank."""
    plan, options = epoch_plan(index, PlanSpec(1, 8, "single"), 2), {"crop_scale": 1.3, "seed": 5}
    options |= {"threads": 2, "prefetch": 2, "on_damage": "raise", "max_damaged": 0, "augment": FIRST}
    with Loader(index, rest_on_device=on_device, **options) as loader:
        ranks = [list(loader.batches(plan, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert all((batch.rest is not None) == on_device for rank in ranks for batch in rank)
    return [[finish(batch, torch.device("cpu")) for batch in rank] for rank in ranks]


def whole(ranks: list[list[Batch]]) -> torch.Tensor:
    return torch.stack([torch.cat([part.images for part in step]) for step in zip(*ranks, strict=True)])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_are_alike_on_any_number_of_ranks_and_wherever_they_are_finished(index, world):
    expected = whole(batches(index, 1, on_device=True))
    assert torch.equal(whole(batches(index, world, on_device=True)), expected)
    on_threads = whole(batches(index, world, on_device=False))
    assert (on_threads != expected).float().mean() < 1e-3


def test_finished_batches_are_not_finished_again(index):
    batch = batches(index, 1, on_device=True)[0][0]
    assert sorted(set(batch.sizes.tolist())) == [33, 60]
    assert batch.rest is None and finish(batch, torch.device("cpu")) is batch


@pytest.mark.gpu
def test_cuda_is_the_threads_but_for_ties():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    drawn = draw_parameters(FIRST, 4, 1, np.arange(120))
    assert differing([260, 97, 40] * 40, drawn, "cuda") < 5e-4
