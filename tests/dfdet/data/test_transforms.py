from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from dfdet.data.transforms import ToInput
from tests.dfdet.data.pictures import picture

MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
LEVEL = 1 / 255 / min(STD)


def public_preprocessing(image: np.ndarray, size: int) -> torch.Tensor:
    """What open_clip and the public code do: Pillow's bicubic resize, then normalisation."""
    steps = [
        tv.Resize((size, size), tv.InterpolationMode.BICUBIC),
        tv.ToTensor(),
        tv.Normalize(MEAN, STD),
    ]
    return tv.Compose(steps)(Image.fromarray(image))


@pytest.mark.parametrize(("side", "size"), [(260, 224), (64, 96), (128, 32), (96, 96), (97, 56)])
def test_input_is_the_public_preprocessing_within_two_levels(side, size):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for image in (picture(0, side, side), noise):
        found = ToInput(size, MEAN, STD)(torch.from_numpy(image)[None])[0]
        difference = abs(found - public_preprocessing(image, size))
        assert difference.max() < 2.01 * LEVEL
        assert difference.mean() < 0.01 * LEVEL


@pytest.mark.parametrize(("sides", "size"), [([97, 97], 56), ([97, 60], 56), ([64, 80], 96), ([56, 80], 56)])
def test_float_path_of_accelerators_is_the_public_preprocessing_within_two_levels(sides, size):
    to_input = ToInput(size, MEAN, STD)
    images = torch.zeros(2, 97, 97, 3, dtype=torch.uint8)
    for row, side in enumerate(sides):
        images[row, :side, :side] = torch.from_numpy(picture(row, side, side))
    found = to_input._on_accelerator(images, sides).permute(0, 3, 1, 2)
    for row, side in enumerate(sides):
        difference = abs(found[row] - public_preprocessing(images[row, :side, :side].numpy(), size))
        assert difference.max() < 2.01 * LEVEL and difference.mean() < 0.02 * LEVEL


def test_normalisation_is_the_public_ones_to_the_bit():
    image = picture(0, 96, 96)
    found = ToInput(96, MEAN, STD)(torch.from_numpy(image)[None])[0]
    assert torch.equal(found, public_preprocessing(image, 96))


def test_bilinear_is_the_public_preprocessing_too():
    image = picture(0, 97, 97)
    steps = [tv.Resize((56, 56), tv.InterpolationMode.BILINEAR), tv.ToTensor(), tv.Normalize(MEAN, STD)]
    found = ToInput(56, MEAN, STD, "bilinear")(torch.from_numpy(image)[None])[0]
    assert abs(found - tv.Compose(steps)(Image.fromarray(image))).max() < 2.01 * LEVEL


def test_inputs_stay_valid_as_long_as_they_are_held():
    to_input = ToInput(32, MEAN, STD)
    images = torch.from_numpy(np.stack([picture(row, 40, 40) for row in range(3)]))
    held = to_input(images)
    kept = held.clone()
    to_input(images.flip(0))
    assert torch.equal(held, kept)


def test_each_crop_is_resized_from_its_own_size():
    sides = [40, 64, 40, 24]
    images = torch.full((4, 64, 64, 3), 99, dtype=torch.uint8)
    for row, side in enumerate(sides):
        images[row, :side, :side] = torch.from_numpy(picture(row, side, side))
    to_input = ToInput(32, MEAN, STD)
    found = to_input(images, torch.tensor(sides))
    for row, side in enumerate(sides):
        assert torch.equal(found[row], to_input(images[row : row + 1, :side, :side])[0])


def test_equal_sizes_smaller_than_the_buffer_are_cut_from_it():
    images = torch.zeros(2, 50, 50, 3, dtype=torch.uint8)
    images[:, :40, :40] = 200
    found = ToInput(32, MEAN, STD)(images, torch.tensor([40, 40]))
    assert found.std(dim=(2, 3)).max() < 1e-6
    assert found.dtype == torch.float32 and found.shape == (2, 3, 32, 32)


def test_nothing_is_stored_in_checkpoints():
    assert not ToInput(32, MEAN, STD).state_dict()


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_within_two_levels():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    images = torch.from_numpy(np.stack([picture(seed, 260, 260) for seed in range(4)]))
    to_input = ToInput(224, MEAN, STD)
    expected = to_input(images)
    assert abs(to_input.cuda()(images.cuda()).cpu() - expected).max() < 2.01 * LEVEL
