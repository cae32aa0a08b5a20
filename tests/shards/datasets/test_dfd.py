from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.dfd import find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name, touch

REALS = "original_sequences/actors/c23/videos"
FAKES = "manipulated_sequences/DeepFakeDetection/c23/videos"
MASKS = "manipulated_sequences/DeepFakeDetection/masks/videos"
FAKE = "01_02__walking_and_outside_surprised__YVGY8LOK"


@pytest.fixture
def root(tmp_path) -> Path:
    touch(tmp_path / REALS, "01__walking_and_outside_surprised", "02__kitchen_pan")
    touch(tmp_path / FAKES, FAKE, "01_03__walking_and_outside_surprised__ABC123")
    return tmp_path


def test_the_group_is_target_and_scene_and_the_identity_the_target(root):
    videos = by_name(find(root, ListOptions()))
    fake, real = videos[f"DFD/{FAKE}"], videos["real/01__walking_and_outside_surprised"]
    assert fake.group == real.group == "dfd/01__walking_and_outside_surprised"
    assert fake.group_level == real.group_level == "exact"
    assert (fake.identity, videos["real/02__kitchen_pan"].identity) == ("01", "02")


def test_all_of_it_is_test(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "dfd-c23"
    assert [video.split for video in listing.videos] == ["test"] * 4


def test_a_mask_goes_to_the_fake_and_to_its_real(root):
    touch(root / MASKS, FAKE)
    videos = by_name(find(root, ListOptions()))
    mask = root / MASKS / f"{FAKE}.mp4"
    assert videos[f"DFD/{FAKE}"].mask == videos["real/01__walking_and_outside_surprised"].mask == mask
    assert videos["DFD/01_03__walking_and_outside_surprised__ABC123"].mask is None


def test_absent_masks_are_told(root):
    touch(root / MASKS, FAKE)
    assert any(note.startswith("1 of 2 fakes have no mask") for note in find(root, ListOptions()).notes)


def test_a_real_that_fakes_were_made_of_is_missing_once(root):
    (root / REALS / "01__walking_and_outside_surprised.mp4").unlink()
    (missing,) = find(root, ListOptions()).missing
    assert (missing.source, missing.video, missing.split) == (
        "real",
        "01__walking_and_outside_surprised",
        "test",
    )


def test_a_part_of_the_dataset_is_told(root):
    notes = find(root, ListOptions()).notes
    assert "2 real videos are there, the whole dataset has 363" in notes
    assert "2 DFD videos are there, the whole dataset has 3068" in notes


def test_a_name_of_another_form_gets_no_group(root):
    touch(root / FAKES, "01_02_walking")
    video = by_name(find(root, ListOptions()))["DFD/01_02_walking"]
    assert (video.group, video.group_level, video.identity) == (None, "none", None)


def test_another_compression_that_is_there_is_named(root):
    with pytest.raises(InputError, match="give --compression c23"):
        find(root, ListOptions(compression="raw"))
