import hashlib
from itertools import islice

import numpy as np
import pytest

from shards.media.frames import outward, pick


@pytest.mark.parametrize(("length", "count"), [(750, 32), (33, 32), (1000, 7), (100_000, 32)])
def test_uniform_runs_from_the_first_frame_to_the_last_as_in_deepfakebench(length, count):
    picked = pick(length, count, "uniform")
    theirs = np.linspace(0, length - 1, count, endpoint=True, dtype=int)
    assert picked[0] == 0 and picked[-1] == length - 1
    # Their steps are floats, which may fall a hair below a whole number.
    assert np.abs(np.array(picked) - theirs).max() <= 1


def test_uniform_of_four_in_ten():
    assert pick(10, 4, "uniform") == [0, 3, 6, 9]


@pytest.mark.parametrize("how", ["uniform", "random"])
def test_a_short_video_gives_all_it_has(how):
    assert pick(5, 32, how) == [0, 1, 2, 3, 4]


def test_no_frames_give_none():
    assert [pick(0, 32, how) for how in ("uniform", "random", "stride")] == [[], [], []]


def test_one_frame_is_the_first():
    assert pick(9, 1, "uniform") == [0]


def splitmix64(seed: int, index: int) -> int:
    mask = 2**64 - 1
    value = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    return value ^ value >> 31


def test_random_frames_are_those_of_smallest_splitmix64():
    seed = int.from_bytes(hashlib.blake2b(b"0/ffpp/033", digest_size=8).digest(), "little")
    smallest = sorted(range(1000), key=lambda index: splitmix64(seed, index))[:6]
    assert pick(1000, 6, "random", seed_text="0/ffpp/033") == sorted(smallest)


def test_random_frames_never_change():
    assert pick(1000, 6, "random", seed_text="0/ffpp/033") == [470, 501, 649, 792, 957, 990]


def test_random_frames_are_ascending_and_unique():
    picked = pick(750, 32, "random", seed_text="a")
    assert picked == sorted(set(picked)) and len(picked) == 32


def test_random_frames_differ_by_text():
    assert pick(750, 32, "random", seed_text="a") != pick(750, 32, "random", seed_text="b")


def test_random_frames_of_a_longer_video_are_nearly_the_same():
    shorter, longer = (set(pick(length, 32, "random", seed_text="a")) for length in (720, 750))
    assert len(shorter & longer) >= 28


def test_random_frames_cover_the_video_evenly():
    drawn = np.concatenate([pick(100, 10, "random", seed_text=str(seed)) for seed in range(2000)])
    shares = np.bincount(drawn, minlength=100) / 2000
    assert abs(shares - 0.1).max() < 0.03


def test_stride_takes_every_kth_up_to_the_count():
    assert pick(100, 4, "stride", stride=7) == [0, 7, 14, 21]
    assert pick(15, 4, "stride", stride=7) == [0, 7, 14]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"stride": 0}, {"length": -1}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="give 0, 1, 1 or more"):
        pick(**({"length": 10, "count": 3, "how": "stride"} | wrong))


def farthest_first(length: int) -> list[int]:
    tried = [length // 2]
    while len(tried) < length:
        rest = [index for index in range(length) if index not in tried]
        tried.append(max(rest, key=lambda index: (min(abs(index - each) for each in tried), -index)))
    return tried


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 10, 33, 64])
def test_outward_is_the_farthest_first_order(length):
    assert list(outward(length)) == farthest_first(length)


def test_outward_of_nothing_is_nothing():
    assert list(outward(0)) == []


def test_outward_starts_at_once_in_any_video():
    assert list(islice(outward(10**12), 3)) == [5 * 10**11, 0, 10**12 - 1]


def test_outward_gives_each_frame_of_a_long_video_once():
    assert sorted(outward(100_000)) == list(range(100_000))
