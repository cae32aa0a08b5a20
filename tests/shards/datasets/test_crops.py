import json
import os
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.crops import find
from shards.source import Listing, ListOptions, Missing


def tree(root: Path, *videos: str) -> Path:
    for video in videos:
        (root / video).mkdir(parents=True, exist_ok=True)
        (root / video / "000.png").touch()
    return root


def lists(folder: Path, **entries) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in entries.items():
        if isinstance(lines, str):
            (folder / f"{split}.txt").write_text(lines)
        else:
            (folder / f"{split}.json").write_text(json.dumps(lines))
    return folder


def listed(root: Path, **options) -> Listing:
    return find(root, ListOptions(**options))


def groups(listing: Listing) -> dict[str, str | None]:
    return {video.name: video.group for video in listing.videos}


def splits(listing: Listing) -> dict[str, str]:
    return {video.name: video.split for video in listing.videos}


def test_the_source_tells_label_and_method(tmp_path):
    listing = listed(tree(tmp_path / "FF", "real/000", "DF/000_003"))
    assert listing.dataset == "FF"
    assert {video.name: video.label for video in listing.videos} == {"real/000": 0, "DF/000_003": 1}
    assert {(video.kind, video.ready, video.split) for video in listing.videos} == {("folder", True, "all")}


@pytest.mark.parametrize("source", ["Celeb-real", "REAL", "YouTube-Real"])
def test_real_in_a_name_means_real_in_any_case(tmp_path, source):
    assert [video.source for video in listed(tree(tmp_path / "x", f"{source}/0")).videos] == ["real"]


def test_the_group_is_the_real_named_before_the_underscore(tmp_path):
    listing = listed(tree(tmp_path / "FF", "real/000", "DF/000_003"))
    assert groups(listing) == {"real/000": "FF/000", "DF/000_003": "FF/000"}
    assert {video.group_level for video in listing.videos} == {"exact"}


def test_the_group_of_celeb_names_is_the_first_and_last_part(tmp_path):
    listing = listed(tree(tmp_path / "CDFv2", "Celeb-real/id0_0000", "Celeb-synthesis/id0_id1_0000"))
    assert set(groups(listing).values()) == {"CDFv2/id0_0000"}


def test_a_fake_without_a_real_of_its_name_has_no_group(tmp_path):
    listing = listed(tree(tmp_path / "FF", "real/001", "DF/000_003"))
    assert groups(listing) == {"real/001": "FF/001", "DF/000_003": None}
    assert [note for note in listing.notes if "without a real of their name: 1" in note]


def test_reals_of_one_name_in_two_sources_are_kept_apart(tmp_path):
    listing = listed(tree(tmp_path / "x", "a-real/000", "b-real/000", "DF/000_003"))
    assert groups(listing) == {
        "real/a-real-000": "x/a-real-000",
        "real/b-real-000": "x/b-real-000",
        "DF/000_003": None,
    }


def test_the_parent_of_one_dataset_will_do(tmp_path):
    tree(tmp_path / "FF", "real/000")
    (tmp_path / "notes").mkdir()
    assert listed(tmp_path).dataset == "FF"


def test_several_datasets_are_refused_by_name_and_chosen_by_name(tmp_path):
    tree(tmp_path, "FF/real/000", "CDF/real/000")
    with pytest.raises(InputError, match=r"2 datasets of crops \(CDF, FF\)"):
        listed(tmp_path)
    assert [video.path.parent.parent.name for video in listed(tmp_path, name="FF").videos] == ["FF"]


def test_a_folder_without_crops_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="<dataset>/<source>/<video>/<frame>"):
        listed(tmp_path)


def test_images_outside_of_video_folders_are_counted(tmp_path):
    tree(tmp_path / "FF", "real/000")
    (tmp_path / "FF" / "real" / "stray.png").touch()
    assert [note for note in listed(tmp_path / "FF").notes if "no video's folder: 1" in note]


def test_lists_of_frames_videos_and_sources_give_splits(tmp_path):
    tree(tmp_path / "FF", "real/000", "real/001", "DF/000_003", "DF/001_004")
    lists(tmp_path / "s", train="datasets/FF/real/000/000.png\nDF/000_003\n", test="001\n001_004.mp4\n")
    assert splits(listed(tmp_path / "FF", splits=tmp_path / "s")) == {
        "real/000": "train",
        "DF/000_003": "train",
        "real/001": "test",
        "DF/001_004": "test",
    }


def test_json_pairs_name_two_reals_and_two_fakes(tmp_path):
    tree(tmp_path / "FF", "real/000", "real/003", "DF/000_003", "DF/003_000", "real/009")
    lists(tmp_path / "s", val=[["000", "003"]], test=["009"])
    found = splits(listed(tmp_path / "FF", splits=tmp_path / "s"))
    assert found.pop("real/009") == "test"
    assert set(found.values()) == {"val"} and len(found) == 4


def test_lists_in_folders_by_split_and_in_the_dataset_are_found(tmp_path):
    tree(tmp_path / "FF", "real/000", "DF/000_003")
    lists(tmp_path / "FF" / "test", real="real/000\n", DF="DF/000_003/000.png\n")
    assert set(splits(listed(tmp_path / "FF")).values()) == {"test"}


def test_with_lists_the_unnamed_are_left_out_and_the_absent_missing(tmp_path):
    tree(tmp_path / "FF", "real/000", "real/001")
    lists(tmp_path / "s", train="real/000\nDF/000_003\nreal/777/001.png\n999\n../000\n")
    listing = listed(tmp_path / "FF", splits=tmp_path / "s")
    assert splits(listing) == {"real/000": "train"}
    assert set(listing.missing) == {
        Missing("DF", "000_003", "train", "train.txt"),
        Missing("real", "777", "train", "train.txt"),
    }
    for text in ("no split list names: 1", "no folder has: 1 (as '999')", "name no video: 1 (as '../000')"):
        assert [note for note in listing.notes if text in note]


def test_a_video_in_two_lists_is_refused(tmp_path):
    tree(tmp_path / "FF", "real/000")
    lists(tmp_path / "s", train="real/000\n", test="real/000\n")
    with pytest.raises(InputError, match="'real/000' is in train too"):
        listed(tmp_path / "FF", splits=tmp_path / "s")


@pytest.mark.parametrize(
    ("entries", "match"), [({}, "holds no train"), ({"train": "other\n"}, "name no video")]
)
def test_lists_of_nothing_are_refused(tmp_path, entries, match):
    tree(tmp_path / "FF", "real/000")
    with pytest.raises(InputError, match=match):
        listed(tmp_path / "FF", splits=lists(tmp_path / "s", **entries))


def test_odd_names_and_link_loops_do_no_harm(tmp_path):
    root = tree(tmp_path / "my 'set'\n", "real/a b", 'DF/q"\n', os.fsdecode(b"DF/\xff"))
    (root / "DF" / "loop").symlink_to(root / "DF" / "loop")
    listing = listed(root)
    assert listing.dataset == "my__set__"
    assert {video.name for video in listing.videos} == {"real/a b", 'DF/q"\n', "DF/\\xff"}
