from pathlib import Path

import pytest

from shards.datasets.ffiw import find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path) -> Path:
    touch(tmp_path, "source/train/train_00000000", "target/train/train_00000000")
    touch(tmp_path, "target_mask/train/train_00000000", "target/val/val_00000001")
    return tmp_path


def test_folders_tell_label_and_split(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "ffiw"
    assert {(video.name, video.label, video.split) for video in listing.videos} == {
        ("real/train_00000000", 0, "train"),
        ("FFIW/train_00000000", 1, "train"),
        ("FFIW/val_00000001", 1, "val"),
    }


def test_no_fake_is_paired_with_the_source_of_its_name(root):
    assert {(video.group, video.group_level) for video in find(root, ListOptions()).videos} == {
        (None, "none")
    }


def test_the_mask_goes_to_the_fake_only(root):
    videos = by_name(find(root, ListOptions()))
    assert videos["FFIW/train_00000000"].mask == root / "target_mask/train/train_00000000.mp4"
    assert videos["real/train_00000000"].mask is None


def test_absent_masks_and_videos_are_told(root):
    notes = find(root, ListOptions()).notes
    assert "1 real train videos are there, the whole dataset has 8000" in notes
    assert "0 FFIW test videos are there, the whole dataset has 1738" in notes
    assert any(note.startswith("1 of 2 fakes have no mask") for note in notes)


def test_numbers_that_start_anew_get_the_split_before_them(tmp_path):
    touch(tmp_path, "source/train/0000", "source/val/0000")
    assert set(by_name(find(tmp_path, ListOptions()))) == {"real/train_0000", "real/val_0000"}


def test_both_folders_of_the_release_are_taken(tmp_path):
    touch(
        tmp_path,
        "FFIW10K-v1-release/source/val/val_00000000",
        "FFIW10K-v1-release-test/source/test/test_00000000",
    )
    assert {(video.video, video.split) for video in find(tmp_path, ListOptions()).videos} == {
        ("val_00000000", "val"),
        ("test_00000000", "test"),
    }
