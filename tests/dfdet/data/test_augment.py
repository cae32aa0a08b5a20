from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dfdet.config import Augment
from dfdet.data.augment import Parameters, apply, draw_parameters
from tests.dfdet.data.pictures import picture

NOTHING = Parameters(
    flip=False,
    degrees=0,
    shift_x=0,
    shift_y=0,
    scale=1,
    sigma_px=0,
    brightness=1,
    contrast=1,
    contrast_first=False,
    quality=None,
)
IMAGE = picture(3, 96, 96)


def column(parameters: list[Parameters], name: str) -> np.ndarray:
    return np.array([getattr(item, name) for item in parameters], float)


@pytest.fixture(scope="module")
def drawn() -> list[Parameters]:
    return draw_parameters(Augment(), 0, 0, np.arange(20_000))


def test_probabilities_are_those_of_the_config(drawn):
    assert abs(column(drawn, "flip").mean() - 0.5) < 0.015
    assert abs((column(drawn, "sigma_px") > 0).mean() - 0.1) < 0.01
    assert abs(column(drawn, "contrast_first").mean() - 0.5) < 0.015


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("degrees", -10, 10),
        ("shift_x", -0.1, 0.1),
        ("shift_y", -0.1, 0.1),
        ("scale", 0.9, 1.1),
        ("brightness", 0.9, 1.1),
        ("contrast", 0.9, 1.1),
    ],
)
def test_ranges_are_filled_uniformly(drawn, name, low, high):
    histogram, _ = np.histogram(column(drawn, name), 10, (low, high))
    assert histogram.sum() == len(drawn)
    assert abs(histogram / 2000 - 1).max() < 0.1


def test_blur_and_quality_stay_in_their_ranges_and_reach_both_ends(drawn):
    sigma, quality = column(drawn, "sigma_px"), column(drawn, "quality")
    sigma = sigma[sigma > 0]
    assert sigma.min() >= 0.1 and sigma.max() <= 2 and np.ptp(sigma) > 1.8
    assert set(quality.tolist()) == set(range(40, 101))


def test_strength_scales_ranges_and_probabilities_but_not_the_flip():
    weak, strong = (draw_parameters(Augment(strength=s), 0, 0, np.arange(5000)) for s in (0.5, 2))
    assert 4.9 < abs(column(weak, "degrees")).max() <= 5 and abs(column(strong, "degrees")).max() > 19
    assert min(column(weak, "quality")) == 70 and min(column(strong, "quality")) == 1
    assert abs((column(strong, "sigma_px") > 0).mean() - 0.2) < 0.02
    assert abs(column(weak, "flip").mean() - 0.5) < 0.03


def test_draws_depend_on_seed_epoch_and_position_only():
    at = draw_parameters(Augment(), 1, 2, np.arange(10))
    assert draw_parameters(Augment(), 1, 2, np.array([7])) == [at[7]]
    assert draw_parameters(Augment(), 2, 2, np.array([7])) != [at[7]]
    assert draw_parameters(Augment(), 1, 3, np.array([7])) != [at[7]]
    assert at[6] != at[7]


def test_quality_100_switches_jpeg_off():
    drawn = draw_parameters(Augment(jpeg_quality=100), 0, 0, np.arange(100))
    assert {item.quality for item in drawn} == {None}


def test_nothing_changes_nothing():
    assert (apply(IMAGE, NOTHING) == IMAGE).all()


@pytest.mark.parametrize(
    "change",
    [
        {"flip": True},
        {"degrees": 5.0},
        {"shift_x": 0.05},
        {"shift_y": -0.05},
        {"scale": 1.05},
        {"sigma_px": 1.0},
        {"brightness": 0.95},
        {"contrast": 1.05},
        {"quality": 40},
    ],
)
def test_every_step_changes_pixels_and_keeps_the_shape(change):
    before = IMAGE.copy()
    image = apply(IMAGE, replace(NOTHING, **change))
    assert image.shape == IMAGE.shape and image.dtype == np.uint8
    assert (image != IMAGE).mean() > 0.2
    assert (before == IMAGE).all()


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def levels(image: np.ndarray, reference: torch.Tensor) -> np.ndarray:
    return abs(image.astype(int) - reference.permute(1, 2, 0).numpy())


def test_blur_is_torchvisions():
    reference = v2.functional.gaussian_blur(tensor(IMAGE), [7, 7], [1.3, 1.3])
    assert levels(apply(IMAGE, replace(NOTHING, sigma_px=1.3)), reference).max() <= 1


@pytest.mark.parametrize("contrast_first", [False, True])
def test_jitter_is_torchvisions(contrast_first):
    steps = [
        lambda x: v2.functional.adjust_brightness(x, 1.08),
        lambda x: v2.functional.adjust_contrast(x, 0.92),
    ]
    reference = tensor(IMAGE)
    for step in steps[::-1] if contrast_first else steps:
        reference = step(reference)
    change = replace(NOTHING, brightness=1.08, contrast=0.92, contrast_first=contrast_first)
    assert levels(apply(IMAGE, change), reference).max() <= 2


def test_affine_is_torchvisions():
    change = replace(NOTHING, degrees=-7.0, shift_x=0.05, shift_y=-0.03, scale=0.93)
    reference = v2.functional.affine(tensor(IMAGE), 7.0, [5, -3], 0.93, [0.0, 0.0])
    assert (levels(apply(IMAGE, change), reference) > 0).mean() < 0.01


def test_jpeg_is_pillows():
    out = io.BytesIO()
    Image.fromarray(IMAGE).save(out, "JPEG", quality=55)
    assert (apply(IMAGE, replace(NOTHING, quality=55)) == np.asarray(Image.open(out))).all()
