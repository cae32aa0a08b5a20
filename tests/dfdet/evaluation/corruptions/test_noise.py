import numpy as np
import pytest
import torch
from scipy import stats

from dfdet.data import hashing
from dfdet.evaluation.corruptions.noise import add_noise, splitmix64
from tests.dfdet.evaluation.corruptions.crops import batch


def grey(count: int, side: int = 96) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Middle grey, where nothing is clamped at small sigmas; sizes; ids."""
    images = torch.full((count, side, side, 3), 128, dtype=torch.uint8)
    return images, torch.full((count,), side), np.arange(count)


def test_the_hash_is_that_of_the_data_order():
    words = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    words[:3] = 0, 2**63, 2**64 - 1
    found = splitmix64(torch.from_numpy(words.view(np.int64))).numpy().view(np.uint64)
    np.testing.assert_array_equal(found, hashing.splitmix64(words))


def test_a_value_is_a_normal_quantile_chosen_by_the_hash_of_seed_id_and_place():
    images, sizes = batch([5, 9])
    found = add_noise(images, sizes, 0.1, np.array([12, 70]), seed=4)
    for row, (side, sample) in enumerate([(5, 12), (9, 70)]):
        for y, x, channel in [(0, 0, 0), (side - 1, 2, 1), (3, side - 1, 2)]:
            step = np.array([(y * 2**20 + x) * 0x9E3779B97F4A7C15 % 2**64], np.uint64)
            state = hashing.chain(4, 0x6E6F6973, [sample]) + step
            draw = int(hashing.splitmix64(state)[0]) >> 16 * channel & 0xFFFF
            value = int(images[row, y, x, channel]) + 25.5 * stats.norm.ppf((draw + 0.5) / 65536)
            assert int(found[row, y, x, channel]) == np.clip(np.rint(value), 0, 255)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.05, 0.1])
def test_noise_is_normal_with_the_sigma_asked_for(sigma):
    images, sizes, ids = grey(8)
    noise = (add_noise(images, sizes, sigma, ids, 0).numpy().astype(float) - 128).reshape(-1)
    # Rounding adds a variance of 1/12.
    assert noise.std() == pytest.approx(np.hypot(255 * sigma, 12**-0.5), rel=0.01)
    assert abs(noise.mean()) < 4 * noise.std() / len(noise) ** 0.5
    edges = np.arange(-3, 3.1, 0.5) * 255 * sigma
    shares = np.diff(stats.norm.cdf(np.floor(edges) + 0.5, scale=255 * sigma))
    found = np.histogram(noise, np.floor(edges) + 0.5)[0] / len(noise)
    np.testing.assert_allclose(found, shares, atol=4 * (0.25 / len(noise)) ** 0.5)


def test_samples_places_and_channels_are_independent():
    images, sizes, ids = grey(2)
    noise = add_noise(images, sizes, 0.1, ids, 0).numpy().astype(float) - 128
    series = [noise[0, ..., 0], noise[0, ..., 1], noise[0, ..., 2], noise[1, ..., 0]]
    series += [np.roll(series[0], 1, 0), np.roll(series[0], 1, 1)]
    correlation = np.corrcoef([one.reshape(-1) for one in series])
    assert np.abs(correlation - np.eye(6)).max() < 4 / 96


def test_seeds_and_ids_give_other_noise_and_nothing_else_does():
    images, sizes, _ = grey(1)
    first = add_noise(images, sizes, 0.1, np.array([5]), 0)
    assert torch.equal(add_noise(images, sizes, 0.1, np.array([5]), 0), first)
    assert not torch.equal(add_noise(images, sizes, 0.1, np.array([6]), 0), first)
    assert not torch.equal(add_noise(images, sizes, 0.1, np.array([5]), 1), first)


def test_levels_of_a_curve_share_their_noise():
    images, sizes, ids = grey(1)
    weak, strong = (
        add_noise(images, sizes, sigma, ids, 0).numpy().astype(float) - 128 for sigma in (0.05, 0.1)
    )
    assert np.abs(2 * weak - strong).max() <= 1.5  # of rounding


def test_values_are_clamped_not_wrapped():
    for level in (0, 255):
        images = torch.full((1, 64, 64, 3), level, dtype=torch.uint8)
        found = add_noise(images, torch.tensor([64]), 0.2, np.array([0]), 0)
        assert (found == level).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.gpu
def test_cuda_is_the_cpu_to_the_bit():
    images, sizes = batch([64, 97, 160])
    found = add_noise(images.cuda(), sizes, 0.2, np.arange(3), 7)
    assert torch.equal(found.cpu(), add_noise(images, sizes, 0.2, np.arange(3), 7))
