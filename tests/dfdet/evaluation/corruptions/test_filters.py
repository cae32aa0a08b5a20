"""The batched filters of accelerators, here on the CPU."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dfdet.evaluation.corruptions.filters import blur_matrix, filter_batched, resize_matrix
from dfdet.evaluation.corruptions.grid import FILTERS, GRID, Corruption
from tests.dfdet.evaluation.corruptions.crops import batch, crop

BLURS = [corruption for corruption in GRID if corruption.kind == "blur" and not corruption.clean]
RESIZES = [corruption for corruption in GRID if corruption.kind == "resize"]
SIDES = [1, 64, 97, 112, 225]


@pytest.mark.parametrize("corruption", RESIZES, ids=lambda corruption: corruption.name)
def test_a_resize_is_that_of_pillow_to_the_bit(corruption):
    images, sizes = batch(SIDES)
    found = filter_batched(images, sizes, corruption)
    side, resample = int(corruption.level), Image.Resampling[corruption.filter.upper()]
    for row, size in enumerate(SIDES):
        expected = np.asarray(
            Image.fromarray(images[row, :size, :size].numpy()).resize((side, side), resample)
        )
        np.testing.assert_array_equal(found[row].numpy(), expected, err_msg=f"side {size}")


@pytest.mark.parametrize("filter_name", FILTERS)
def test_a_resize_of_extreme_pixels_is_clamped_as_pillow_has_it(filter_name):
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (160, 160, 3))
    found = filter_batched(
        torch.from_numpy(image)[None], torch.tensor([160]), Corruption("resize", 112, filter=filter_name)
    )
    expected = Image.fromarray(image).resize((112, 112), Image.Resampling[filter_name.upper()])
    np.testing.assert_array_equal(found[0].numpy(), np.asarray(expected))


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("target", [224, 112, 64])
def test_weights_of_an_axis_are_those_of_pillow_at_any_side(filter_name, target):
    for side in (2, 3, 31, 63, 65, 111, 223, 299, 336, 448, 896, 1024):
        image = np.random.default_rng(side).integers(0, 256, (side, 16), np.uint8)
        resized = Image.fromarray(image).resize((16, target), Image.Resampling[filter_name.upper()])
        found = np.floor(resize_matrix(side, target, filter_name) @ image + 0.5).clip(0, 255)
        np.testing.assert_array_equal(found, np.asarray(resized), err_msg=f"side {side}")


@pytest.mark.parametrize("filter_name", FILTERS)
def test_weights_of_a_resize_sum_to_one(filter_name):
    sums = resize_matrix(160, 64, filter_name).sum(1)
    np.testing.assert_allclose(sums, 1, atol=20 / 2**23)


@pytest.mark.parametrize("corruption", BLURS, ids=lambda corruption: corruption.name)
@pytest.mark.parametrize("side", [11, 64, 97, 224])
def test_a_blur_is_that_of_torchvision_but_for_ties(corruption, side):
    image = torch.from_numpy(crop(side, side))
    found = filter_batched(image[None], torch.tensor([side]), corruption)[0].int()
    kernel, sigma = [corruption.kernel_px] * 2, [corruption.level] * 2
    expected = F.gaussian_blur(image.permute(2, 0, 1), kernel, sigma).permute(1, 2, 0).int()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 2e-3


@pytest.mark.parametrize("side", [1, 2, 3, 5, 9])
def test_a_crop_smaller_than_the_kernel_is_mirrored_again_and_again(side):
    image = np.random.default_rng(side).integers(0, 256, (side, side), np.uint8).astype(float)
    matrix = blur_matrix(side, 19, 3.0)
    expected = cv2.GaussianBlur(image, (19, 19), 3.0, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=255 * 19 / 2**22)


@pytest.mark.parametrize("corruption", [BLURS[2], RESIZES[4]], ids=lambda corruption: corruption.name)
def test_more_images_than_a_chunk_are_each_done_alone(corruption):
    images, sizes = batch([40, 33, 40] * 7)
    whole = filter_batched(images, sizes, corruption)
    for row in (0, 1, 15, 16, 20):
        assert torch.equal(
            filter_batched(images[row : row + 1], sizes[row : row + 1], corruption)[0], whole[row]
        )


@pytest.mark.gpu
@pytest.mark.parametrize("corruption", [*BLURS, *RESIZES], ids=lambda corruption: corruption.name)
def test_cuda_is_the_cpu_to_the_bit(corruption):
    images, sizes = batch([64, 97, 160, 224])
    found = filter_batched(images.cuda(), sizes, corruption)
    assert torch.equal(found.cpu(), filter_batched(images, sizes, corruption))
