import json
import os
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.dfdc import find
from shards.source import Listing, ListOptions, Missing


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def part(folder: Path, metadata: object, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    for file in files:
        touch(folder / file)
    return folder


def real(**more) -> dict:
    return {"label": "REAL", "split": "train", **more}


def fake(original: object = "real.mp4") -> dict:
    return {"label": "FAKE", "split": "train", "original": original}


def listed(root: Path) -> Listing:
    return find(root, ListOptions())


def names(listing: Listing) -> set[str]:
    return {video.name for video in listing.videos}


def test_metadata_gives_label_and_the_exact_group(tmp_path):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real(), "f.mp4": fake("r.mp4")}, "r.mp4", "f.mp4")
    found = {video.name: video for video in listed(tmp_path).videos}
    assert set(found) == {"real/r", "DFDC/f"}
    assert {(video.group, video.group_level) for video in found.values()} == {("dfdc/r", "exact")}
    assert found["DFDC/f"].path == tmp_path / "dfdc_train_part_0" / "f.mp4"
    assert {video.split for video in found.values()} == {"train"}


def test_a_group_goes_across_parts_and_without_the_original_on_disk(tmp_path):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real(), "a.mp4": fake("gone.mp4")}, "r.mp4", "a.mp4")
    part(tmp_path / "dfdc_train_part_49", {"b.mp4": fake("r.mp4")}, "b.mp4")
    groups = {video.video: (video.group, video.group_level) for video in listed(tmp_path).videos}
    assert groups["b"] == groups["r"] == ("dfdc/r", "exact")
    assert groups["a"] == ("dfdc/gone", "exact")


def test_what_metadata_names_and_the_disk_lacks_is_missing(tmp_path):
    part(tmp_path / "dfdc_train_part_7", {"r.mp4": real(), "f.mp4": fake("r.mp4")}, "r.mp4")
    listing = listed(tmp_path)
    assert names(listing) == {"real/r"}
    assert listing.missing == (Missing("DFDC", "f", "train", "dfdc_train_part_7/metadata.json"),)


def test_files_that_no_metadata_names_are_counted_and_left_out(tmp_path):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real()}, "r.mp4", "x.mp4", "y.mp4", "._r.mp4")
    listing = listed(tmp_path)
    assert names(listing) == {"real/r"}
    assert [note for note in listing.notes if "no list names: 2" in note and "x.mp4" in note]


@pytest.mark.parametrize("place", ["", "dfdc_train_part_00/dfdc_train_part_0", "train/dfdc_train_part_1"])
def test_parts_are_found_bare_and_nested(tmp_path, place):
    part(tmp_path / place, {"r.mp4": real()}, "r.mp4")
    assert names(listed(tmp_path)) == {"real/r"}


def test_a_corrupt_part_is_left_out_and_the_others_go_on(tmp_path):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real()}, "r.mp4")
    touch(tmp_path / "dfdc_train_part_1" / "s.mp4")
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text('{"s.mp4": {"label"')
    touch(tmp_path / "dfdc_train_part_2" / "t.mp4")  # Its metadata is lacking.
    part(tmp_path / "dfdc_train_part_3", ["u.mp4"], "u.mp4")
    listing = listed(tmp_path)
    assert names(listing) == {"real/r"}
    for number in (1, 2, 3):
        assert [note for note in listing.notes if f"dfdc_train_part_{number}" in note]


def test_nothing_but_corrupt_parts_is_refused(tmp_path):
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        listed(tmp_path)


def test_a_folder_without_any_list_is_refused(tmp_path):
    touch(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="dfdc_train_part_0"):
        listed(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/etc/passwd", "a/b.mp4", "..", ".", "", "a\\b.mp4", "\ud800"]
)
def test_names_that_are_no_file_name_are_counted_and_left_out(tmp_path, name):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real(), name: real()}, "r.mp4")
    touch(tmp_path / "secret.mp4")
    listing = listed(tmp_path)
    assert names(listing) == {"real/r"}
    assert listing.missing == ()
    assert [note for note in listing.notes if "no file name: 1" in note]


@pytest.mark.parametrize("entry", [{"label": "real?"}, {}, "REAL", {"label": ["FAKE"]}, None])
def test_other_labels_are_counted_and_left_out(tmp_path, entry):
    part(tmp_path, {"r.mp4": real(), "x.mp4": entry}, "r.mp4", "x.mp4")
    listing = listed(tmp_path)
    assert names(listing) == {"real/r"}
    assert [note for note in listing.notes if "neither real nor fake: 1" in note]


@pytest.mark.parametrize("original", [None, "", "../r.mp4", 5, "a/b.mp4"])
def test_a_fake_without_a_usable_original_has_no_group(tmp_path, original):
    part(tmp_path, {"f.mp4": fake(original)}, "f.mp4")
    listing = listed(tmp_path)
    assert [(video.group, video.group_level) for video in listing.videos] == [(None, "none")]
    assert [note for note in listing.notes if "without an original: 1" in note]


def test_a_video_in_two_parts_is_taken_once(tmp_path):
    for number in (0, 1):
        part(tmp_path / f"dfdc_train_part_{number}", {"r.mp4": real()}, "r.mp4")
    listing = listed(tmp_path)
    assert [video.path.parent.name for video in listing.videos] == ["dfdc_train_part_0"]
    assert [note for note in listing.notes if "named twice: 1" in note]


@pytest.mark.parametrize("videos", ["videos", ""])
def test_the_test_set_has_labels_and_no_groups(tmp_path, videos):
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / "test" / videos / name)
    (tmp_path / "test" / "labels.csv").write_text("filename,label\na.mp4,0\nb.mp4,1\nc.mp4,1\n")
    listing = listed(tmp_path)
    assert names(listing) == {"real/a", "DFDC/b"}
    assert {(video.split, video.group_level) for video in listing.videos} == {("test", "none")}
    assert listing.missing == (Missing("DFDC", "c", "test", "test/labels.csv"),)


def test_the_validation_set_is_val(tmp_path):
    touch(tmp_path / "validation" / "a.mp4")
    (tmp_path / "validation" / "labels.csv").write_text("filename,label\na.mp4,1\n")
    assert [video.split for video in listed(tmp_path).videos] == ["val"]


def test_odd_file_names_are_kept(tmp_path):
    odd = ["a b.mp4", "q\"'.mp4", "new\nline.mp4", "видео.mp4"]
    part(tmp_path, {name: real() for name in odd}, *odd)
    (tmp_path / os.fsdecode(b"\xff.mp4")).touch()
    listing = listed(tmp_path)
    assert names(listing) == {"real/a b", "real/q\"'", "real/new\nline", "real/видео"}
    assert [note for note in listing.notes if "no list names: 1" in note]


def test_a_folder_linked_into_itself_does_no_harm(tmp_path):
    part(tmp_path / "dfdc_train_part_0", {"r.mp4": real()}, "r.mp4")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "loop").symlink_to(tmp_path / "more")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(listed(tmp_path)) == {"real/r"}
