from pathlib import Path

import pytest

from shards.datasets.uadfv import find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("real/0000", "real/0001", "fake/0000_fake", "fake/0002_fake", "fake/odd"):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_fake_shares_the_group_of_its_number(root):
    videos = by_name(find(root, ListOptions()))
    assert videos["UADFV/0000_fake"].group == videos["real/0000"].group == "uadfv/0000"
    assert videos["UADFV/0000_fake"].group_level == "exact"


def test_a_fake_of_another_name_has_no_group(root):
    video = by_name(find(root, ListOptions()))["UADFV/odd"]
    assert (video.group, video.group_level) == (None, "none")


def test_all_of_it_is_test(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "uadfv"
    assert [video.split for video in listing.videos] == ["test"] * 5


def test_the_real_of_a_fake_is_missing_where_it_is_not_there(root):
    (missing,) = find(root, ListOptions()).missing
    assert (missing.source, missing.video) == ("real", "0002")


def test_a_part_of_the_dataset_is_told(root):
    assert find(root, ListOptions()).notes == (
        "2 real videos are there, the whole dataset has 49",
        "3 UADFV videos are there, the whole dataset has 49",
    )
