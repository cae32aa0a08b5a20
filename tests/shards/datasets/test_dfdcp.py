import json
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.dfdcp import find
from shards.source import Listing, ListOptions, Missing

REAL = "original_videos/1003254/1003254_A_001.mp4"
FAKE_A = "method_A/1003254/1003254_A/1255229_1003254_A_001.mp4"
FAKE_B = "method_B/1003254/1003254_A/1255229_1003254_A_002.mp4"


def tree(root: Path, content: object, *files: str) -> Listing:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))
    return find(root, ListOptions())


def entry(label: str, split: str = "train") -> dict:
    return {"label": label, "set": split, "augmentations": []}


def test_label_method_and_split_come_from_the_list(tmp_path):
    content = {REAL: entry("real", "test"), FAKE_A: entry("fake", "test"), FAKE_B: entry("fake")}
    listing = tree(tmp_path, content, REAL, FAKE_A, FAKE_B)
    assert {(video.source, video.video, video.split) for video in listing.videos} == {
        ("real", "1003254_A_001", "test"),
        ("method_A", "1255229_1003254_A_001", "test"),
        ("method_B", "1255229_1003254_A_002", "train"),
    }


def test_the_group_is_exact_only_where_the_real_clip_is_listed(tmp_path):
    listing = tree(
        tmp_path, {REAL: entry("real"), FAKE_A: entry("fake"), FAKE_B: entry("fake")}, FAKE_A, FAKE_B
    )
    groups = {video.source: (video.group, video.group_level, video.identity) for video in listing.videos}
    assert groups["method_A"] == ("dfdcp/1003254_A_001", "exact", "1003254")
    assert groups["method_B"] == ("dfdcp/1003254", "identity", "1003254")
    assert listing.missing == (Missing("real", "1003254_A_001", "train", "dataset.json"),)


def test_a_fake_of_another_name_has_no_group(tmp_path):
    listing = tree(tmp_path, {"method_A/odd.mp4": entry("fake")}, "method_A/odd.mp4")
    assert [(video.group, video.group_level) for video in listing.videos] == [(None, "none")]


def test_the_unpacked_folder_of_the_archive_is_found(tmp_path):
    tree(tmp_path / "dfdc_preview_set", {REAL: entry("real")}, REAL)
    assert [video.name for video in find(tmp_path, ListOptions()).videos] == ["real/1003254_A_001"]


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/x.mp4", "method_A/../../x.mp4", "a\\b.mp4"])
def test_names_that_leave_the_dataset_are_left_out(tmp_path, name):
    (tmp_path / "x.mp4").touch()
    listing = tree(tmp_path / "set", {REAL: entry("real"), name: entry("fake")}, REAL)
    assert [video.name for video in listing.videos] == ["real/1003254_A_001"]
    assert listing.missing == ()
    assert [note for note in listing.notes if "no path in the dataset: 1" in note]


@pytest.mark.parametrize(
    ("told", "note"),
    [
        (entry("maybe"), "neither real nor fake"),
        (entry("fake", "all"), "neither train nor test"),
        (3, "label"),
    ],
)
def test_other_labels_and_sets_are_counted(tmp_path, told, note):
    listing = tree(tmp_path, {REAL: entry("real"), FAKE_A: told}, REAL, FAKE_A)
    assert [video.source for video in listing.videos] == ["real"]
    assert [each for each in listing.notes if note in each]


def test_without_its_list_the_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.json cannot be read"):
        find(tmp_path, ListOptions())


def test_a_list_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(InputError, match="no list of videos"):
        tree(tmp_path, [REAL])
