import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dfdet.data.decode import decode
from dfdet.errors import DfdetError
from dfdet.evaluation.corruptions.corrupt import check_changes, corrupt
from dfdet.evaluation.corruptions.filters import filter_batched
from dfdet.evaluation.corruptions.grid import GRID, Corruption, parse
from shards.demo.build import plan_set
from shards.demo.video import make_group
from tests.dfdet.evaluation.corruptions.crops import batch, crop, jpeg

MIXED = [48, 33, 64, 1, 97, 16, 64]
every = pytest.mark.parametrize("corruption", GRID, ids=lambda corruption: corruption.name)
real = pytest.mark.parametrize(
    "corruption", [one for one in GRID if not one.clean], ids=lambda corruption: corruption.name
)


def done(images, sizes, corruption, ids=None, seed=0, threads=2):
    ids = np.arange(len(images)) if ids is None else ids
    return corrupt(images, sizes, corruption, ids, seed, threads)


@pytest.fixture(scope="module")
def demo() -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of a video of the demo set and its fakes."""
    samples = make_group(plan_set("train", 0, 6, 1, 1, "webp")[0])
    images = torch.from_numpy(np.stack([decode(data) for _, _, data, _, _ in samples]))
    return images, torch.full((len(images),), images.shape[1])


@real
def test_every_corruption_changes_every_crop_of_the_demo_set(corruption, demo):
    images, sizes = demo
    after, after_sizes = done(images, sizes, corruption)
    check_changes(demo, (after, after_sizes), corruption)
    for row in range(len(images)):
        assert after_sizes[row] != sizes[row] or not torch.equal(after[row], images[row])


@real
def test_a_stronger_level_is_never_the_milder_one(corruption, demo):
    same_curve = [one for one in GRID if one.curve == corruption.curve and not one.clean]
    place = same_curve.index(corruption)
    results = [done(*demo, one)[0] for one in same_curve[max(place - 1, 0) : place + 1]]
    assert place == 0 or results[0].shape != results[1].shape or not torch.equal(*results)


@pytest.mark.parametrize("name", ["blur-0-0", "noise-0"])
def test_clean_ones_give_the_very_pixels(name):
    images, sizes = batch(MIXED)
    after, after_sizes = done(images, sizes, parse(name))
    assert after is images and after_sizes is sizes


@every
def test_the_input_stays_as_it_is(corruption):
    images, sizes = batch([40, 24])
    done(images, sizes, corruption)
    assert torch.equal(images, batch([40, 24])[0]) and sizes.tolist() == [40, 24]


@every
def test_a_batch_of_mixed_sides_equals_its_crops_one_by_one(corruption):
    images, sizes = batch(MIXED)
    whole, whole_sizes = done(images, sizes, corruption)
    assert whole.dtype == torch.uint8 and whole_sizes.dtype == torch.int64
    for row, side in enumerate(MIXED):
        alone = images[row : row + 1, :side, :side]
        one, one_size = done(alone, sizes[row : row + 1], corruption, np.array([row]))
        size = int(one_size)
        assert size == whole_sizes[row] == one.shape[1]
        assert torch.equal(one[0], whole[row, :size, :size])


@every
def test_order_and_threads_do_not_matter(corruption):
    images, sizes = batch(MIXED)
    ids = np.array([9, 4, 4000, 7, 1, 2**40, 3])
    order = np.array([3, 0, 6, 5, 2, 1, 4])
    whole, _ = done(images, sizes, corruption, ids, threads=3)
    shuffled, _ = done(images[order], sizes[order], corruption, ids[order], threads=1)
    assert torch.equal(shuffled, whole[order])


@every
def test_buffers_stay_zero_beyond_the_crops(corruption):
    images, sizes = batch(MIXED, room=5)
    after, after_sizes = done(images, sizes, corruption)
    for row, side in enumerate(after_sizes.tolist()):
        assert not after[row, side:].any() and not after[row, :, side:].any()
        assert after[row, :side, :side].any()


@pytest.mark.parametrize("quality", [100, 80, 60, 40, 20, 10])
@pytest.mark.parametrize("side", [1, 16, 33, 97, 160, 224])
def test_jpeg_is_that_of_pillow_to_the_bit(quality, side):
    images, sizes = batch([side], room=3)
    after, _ = done(images, sizes, parse(f"jpeg-{quality}"))
    np.testing.assert_array_equal(after[0, :side, :side].numpy(), jpeg(crop(0, side), quality))


@pytest.mark.parametrize("name", [one.name for one in GRID if one.kind == "blur" and not one.clean])
@pytest.mark.parametrize("side", [11, 64, 97, 224])
def test_blur_is_that_of_torchvision_but_for_ties(name, side):
    corruption = parse(name)
    images, sizes = batch([side])
    found = done(images, sizes, corruption)[0][0].int()
    kernel, sigma = [corruption.kernel_px] * 2, [corruption.level] * 2
    expected = F.gaussian_blur(images[0].permute(2, 0, 1), kernel, sigma).permute(1, 2, 0).int()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize("name", [one.name for one in GRID if one.kind == "resize"])
@pytest.mark.parametrize("side", [50, 160, 299])
def test_resize_is_that_of_pillow_and_enlarges_small_crops(name, side):
    corruption = parse(name)
    images, sizes = batch([side], room=4)
    after, after_sizes = done(images, sizes, corruption)
    target, resample = int(corruption.level), Image.Resampling[corruption.filter.upper()]
    expected = np.asarray(Image.fromarray(crop(0, side)).resize((target, target), resample))
    assert after_sizes.tolist() == [target]
    np.testing.assert_array_equal(after[0].numpy(), expected)


@pytest.mark.parametrize("name", [one.name for one in GRID if one.kind == "blur" and not one.clean])
def test_accelerators_get_the_blur_of_the_threads_but_for_ties(name):
    images, sizes = batch(MIXED, room=2)
    difference = (
        done(images, sizes, parse(name))[0].int() - filter_batched(images, sizes, parse(name)).int()
    ).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


def test_an_error_on_a_thread_is_raised():
    images, _ = batch([20])
    with pytest.raises(cv2.error, match="empty"):
        done(images, torch.tensor([0]), parse("jpeg-40"))


@real
def test_a_corruption_that_did_nothing_is_an_error(corruption):
    unchanged = batch(MIXED)
    with pytest.raises(
        DfdetError, match=f"corruption {corruption.name}: changes no pixel of a batch of 7 crops"
    ):
        check_changes(unchanged, unchanged, corruption)


@pytest.mark.parametrize("corruption", [parse("blur-0-0"), parse("noise-0"), parse("resize-64-box")])
def test_clean_ones_and_a_resize_to_the_same_side_may_change_nothing(corruption):
    images, sizes = batch([64, 64])
    check_changes((images, sizes), done(images, sizes, corruption), corruption)


def test_one_changed_pixel_is_a_change():
    images, sizes = batch(MIXED)
    changed = images.clone()
    changed[2, 5, 5, 1] ^= 1
    check_changes((images, sizes), (changed, sizes), Corruption("jpeg", 100))


@pytest.mark.gpu
@every
def test_cuda_gives_what_the_cpu_gives_but_for_ties_of_the_blur(corruption):
    images, sizes = batch([64, 97, 160])
    after, after_sizes = done(images.cuda(), sizes, corruption)
    expected, expected_sizes = done(images, sizes, corruption)
    assert after.is_cuda and torch.equal(after_sizes, expected_sizes)
    difference = (after.cpu().int() - expected.int()).abs()
    assert (
        difference.max() <= (1 if corruption.kind == "blur" else 0) and (difference > 0).float().mean() < 1e-3
    )
