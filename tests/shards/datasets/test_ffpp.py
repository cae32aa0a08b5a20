import json
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.ffpp import METHODS, find
from shards.source import Listing, ListOptions
from tests.shards.datasets.trees import by_name, touch

PAIRS = {"train": [["000", "003"]], "val": [["010", "012"]], "test": [["020", "021"]]}


def write_splits(folder: Path, pairs: dict = PAIRS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, content in pairs.items():
        (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path) -> Path:
    """All videos of the pairs in c23, with lists and without masks."""
    pairs = [pair for content in PAIRS.values() for pair in content]
    touch(tmp_path / "original_sequences/youtube/c23/videos", *(name for pair in pairs for name in pair))
    fakes = [name for a, b in pairs for name in (f"{a}_{b}", f"{b}_{a}")]
    for method in METHODS.values():
        touch(tmp_path / f"manipulated_sequences/{method}/c23/videos", *fakes)
    write_splits(tmp_path)
    return tmp_path


def listed(root: Path, **options) -> Listing:
    return find(root, ListOptions(**options))


def test_a_whole_dataset_has_every_source_and_lacks_nothing(root):
    listing = listed(root)
    assert listing.dataset == "ffpp-c23"
    assert len(listing.videos) == 6 + 4 * 6
    assert {video.source: video.label for video in listing.videos} == {
        "real": 0, "DF": 1, "F2F": 1, "FS": 1, "NT": 1
    }  # fmt: skip
    assert (listing.missing, listing.notes) == ((), ())


def test_the_group_of_a_fake_is_its_target(root):
    videos = by_name(listed(root))
    assert videos["DF/000_003"].group == videos["real/000"].group == "ffpp/000"
    assert videos["DF/003_000"].group == videos["NT/003_000"].group == "ffpp/003"
    assert {video.group_level for video in videos.values()} == {"exact"}


def test_reals_and_both_fakes_of_a_pair_have_its_split(root):
    videos = by_name(listed(root))
    assert [videos[name].split for name in ("real/010", "real/012", "FS/010_012", "FS/012_010")] == [
        "val"
    ] * 4
    assert videos["real/000"].split == "train"
    assert videos["F2F/021_020"].split == "test"


def test_no_person_is_told(root):
    assert {video.identity for video in listed(root).videos} == {None}


def test_a_fake_has_its_mask_and_a_real_that_of_the_first_method(root):
    touch(root / "manipulated_sequences/FaceSwap/masks/videos", "000_003", "003_000")
    touch(root / "manipulated_sequences/Face2Face/masks/videos", "000_003")
    videos = by_name(listed(root))
    folder = root / "manipulated_sequences"
    assert videos["FS/000_003"].mask == folder / "FaceSwap/masks/videos/000_003.mp4"
    assert videos["real/000"].mask == folder / "Face2Face/masks/videos/000_003.mp4"
    assert videos["real/003"].mask == folder / "FaceSwap/masks/videos/003_000.mp4"
    assert videos["DF/000_003"].mask is None


def test_a_compression_is_a_dataset_of_its_own(root):
    touch(root / "original_sequences/youtube/c40/videos", "000")
    listing = listed(root, compression="c40")
    assert listing.dataset == "ffpp-c40"
    assert [(video.name, video.compression) for video in listing.videos] == [("real/000", "c40")]


def test_an_unknown_compression_is_refused(root):
    with pytest.raises(InputError, match="'c32' is unknown; there are raw, c23, c40"):
        listed(root, compression="c32")


def test_another_compression_that_is_there_is_named(root):
    with pytest.raises(
        InputError, match=r"no video in c40, but some in original.*c23/videos; give --compression c23"
    ):
        listed(root, compression="c40")


@pytest.mark.parametrize("place", ["splits", "dataset/splits"])
def test_lists_are_found_below_the_root(root, place):
    (root / place).mkdir(parents=True)
    for split in PAIRS:
        (root / f"{split}.json").rename(root / place / f"{split}.json")
    assert len(listed(root).videos) == 30


def test_lists_can_lie_elsewhere(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    write_splits(elsewhere, PAIRS | {"train": [], "test": [["000", "003"]]})
    videos = by_name(listed(root, splits=elsewhere))
    assert videos["real/000"].split == "test"
    assert "real/020" not in videos


def test_without_lists_it_is_refused_with_their_origin(root):
    for split in PAIRS:
        (root / f"{split}.json").unlink()
    with pytest.raises(InputError, match=r"dataset/splits of the FaceForensics repository.*--splits FOLDER"):
        listed(root)


def test_a_part_of_the_lists_is_refused(root):
    (root / "val.json").unlink()
    with pytest.raises(InputError, match=r"lacks val\.json"):
        listed(root)


def test_a_video_in_two_lists_is_refused(root):
    write_splits(root, {"test": [["020", "003"]]})
    with pytest.raises(InputError, match=r"test\.json names '003' again, which .*train\.json"):
        listed(root)


@pytest.mark.parametrize("content", [{"a": "b"}, [["000"]], [[0, 3]], ["000_003"]])
def test_a_list_of_another_form_is_refused(root, content):
    write_splits(root, {"train": content})
    with pytest.raises(InputError, match=r"train\.json"):
        listed(root)


def test_what_the_lists_name_and_the_disk_lacks_is_missing(root):
    (root / "manipulated_sequences/Deepfakes/c23/videos/012_010.mp4").unlink()
    (missing,) = listed(root).missing
    assert (missing.source, missing.video, missing.split, missing.told_by) == (
        "DF",
        "012_010",
        "val",
        "val.json",
    )


def test_a_video_that_no_list_names_is_left_out_with_a_note(root):
    touch(root / "manipulated_sequences/Deepfakes/c23/videos", "000_999", "notes\nof mine")
    listing = listed(root)
    assert len(listing.videos) == 30
    assert listing.notes == (
        "2 videos in manipulated_sequences/Deepfakes/c23/videos are left out: no split list names them",
    )


def test_a_root_without_videos_needs_no_lists(tmp_path):
    assert listed(tmp_path).videos == ()
