import json
from pathlib import Path

import pytest

from shards.datasets.faceshifter import find
from shards.source import ListOptions


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "manipulated_sequences/FaceShifter/c23/videos"
    folder.mkdir(parents=True)
    for name in ("000_003", "003_000"):
        (folder / f"{name}.mp4").touch()
    for split, pairs in {"train": [["000", "003"]], "val": [], "test": []}.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(pairs))
    return tmp_path


def test_its_fakes_lie_in_the_groups_of_ffpp(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "faceshifter-c23"
    assert {(video.name, video.group, video.group_level, video.split) for video in listing.videos} == {
        ("FSh/000_003", "ffpp/000", "exact", "train"),
        ("FSh/003_000", "ffpp/003", "exact", "train"),
    }


def test_reals_of_ffpp_in_the_same_root_are_listed_without_masks(root):
    folder = root / "original_sequences/youtube/c23/videos"
    folder.mkdir(parents=True)
    (folder / "000.mp4").touch()
    masks = root / "manipulated_sequences/Deepfakes/masks/videos"
    masks.mkdir(parents=True)
    (masks / "000_003.mp4").touch()
    (real,) = (video for video in find(root, ListOptions()).videos if video.label == 0)
    assert (real.name, real.group, real.mask) == ("real/000", "ffpp/000", None)


def test_absent_reals_are_missing(root):
    assert [each.video for each in find(root, ListOptions()).missing] == ["000", "003"]
