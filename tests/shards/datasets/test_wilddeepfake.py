import os
from pathlib import Path

import pytest

from shards.datasets.wilddeepfake import find
from shards.source import ListOptions

FOLDERS = ("real_train", "real_test", "fake_train", "fake_test")


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_each_archive_is_a_ready_video_of_its_folder(tmp_path):
    listing = find(tree(tmp_path, *(f"{folder}/7.tar.gz" for folder in FOLDERS)), ListOptions())
    assert {(video.source, video.video, video.split) for video in listing.videos} == {
        ("real", "train-7", "train"),
        ("real", "test-7", "test"),
        ("WDF", "train-7", "train"),
        ("WDF", "test-7", "test"),
    }
    assert {(video.kind, video.ready, video.group_level) for video in listing.videos} == {
        ("archive", True, "none")
    }
    assert listing.notes == ()


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar", ".TAR.GZ"])
def test_archives_of_all_endings_are_taken(tmp_path, ending):
    listing = find(tree(tmp_path, f"real_train/7{ending}"), ListOptions())
    assert [video.video for video in listing.videos] == ["train-7"]


def test_absent_folders_are_told(tmp_path):
    listing = find(tree(tmp_path, "fake_test/1.tar.gz"), ListOptions())
    assert listing.notes == tuple(f"{folder} is not there" for folder in FOLDERS[:3])


def test_other_files_and_unpacked_folders_are_counted(tmp_path):
    files = ("1.tar.gz", "1.tgz", "x.gz", "2/real/0/1.png", "._1.tar.gz")
    listing = find(tree(tmp_path, *(f"real_train/{file}" for file in files)), ListOptions())
    assert [video.video for video in listing.videos] == ["train-1"]
    assert [note for note in listing.notes if "no archive" in note and ": 2 " in note]
    assert [note for note in listing.notes if "unpacked folders" in note and ": 1 " in note]


def test_the_folder_of_the_download_is_found(tmp_path):
    listing = find(tree(tmp_path, "deepfake_in_the_wild/real_test/3.tar.gz"), ListOptions())
    assert [video.path.name for video in listing.videos] == ["3.tar.gz"]


def test_odd_names_are_kept(tmp_path):
    tree(tmp_path, "real_train/a 'b\n.tar.gz", os.fsdecode(b"real_train/\xff.tar.gz"))
    names = {video.video for video in find(tmp_path, ListOptions()).videos}
    assert names == {"train-a 'b\n", "train-\\xff"}
