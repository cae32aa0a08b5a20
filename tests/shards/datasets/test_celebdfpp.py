from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.celebdf import LIST
from shards.datasets.celebdfpp import find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name, touch

LINES = """\
1 Celeb-real/id3_0001.mp4
0 Celeb-synthesis/FaceSwap/SimSwap/id3_id28_0001.mp4
0 Celeb-synthesis/FaceReenact/DaGAN/id3_id28_0001.mp4
0 Celeb-synthesis/TalkingFace/IP_LAP/id3_0001_test_0007.mp4
"""


@pytest.fixture
def root(tmp_path) -> Path:
    touch(tmp_path / "Celeb-real", "id3_0001", "id4_0000")
    touch(tmp_path / "Celeb-synthesis/FaceSwap/SimSwap", "id3_id28_0001", "id4_id3_0000")
    touch(tmp_path / "Celeb-synthesis/FaceReenact/DaGAN", "id3_id28_0001", "id4_id3_0000")
    touch(tmp_path / "Celeb-synthesis/TalkingFace/IP_LAP", "id3_0001_test_0007", "id4_0000_test_0001")
    (tmp_path / LIST).write_text(LINES)
    return tmp_path


def test_the_source_is_the_method(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "cdfpp"
    assert {video.source for video in listing.videos} == {"real", "SimSwap", "DaGAN", "IP_LAP"}


def test_a_face_swap_shares_its_group_with_the_real_of_v2(root):
    videos = by_name(find(root, ListOptions()))
    fake = videos["SimSwap/id3_id28_0001"]
    assert fake.group == videos["real/id3_0001"].group == "cdfv2/id3_0001"
    assert (fake.group_level, fake.identity) == ("exact", "id3")


@pytest.mark.parametrize("name", ["DaGAN/id3_id28_0001", "IP_LAP/id3_0001_test_0007"])
def test_of_driven_faces_only_the_person_is_told(root, name):
    video = by_name(find(root, ListOptions()))[name]
    assert (video.group, video.group_level, video.identity) == (None, "none", "id3")


def test_what_the_list_names_is_test_for_each_method(root):
    videos = find(root, ListOptions()).videos
    assert {video.name for video in videos if video.split == "test"} == {
        "real/id3_0001", "SimSwap/id3_id28_0001", "DaGAN/id3_id28_0001", "IP_LAP/id3_0001_test_0007"
    }  # fmt: skip
    assert len(videos) == 8


def test_a_method_that_the_list_passes_over_is_all_test(root):
    touch(root / "Celeb-synthesis/FaceSwap/Celeb-DF-v2", "id4_id3_0000")
    listing = find(root, ListOptions())
    assert by_name(listing)["Celeb-DF-v2/id4_id3_0000"].split == "test"
    assert any("names nothing of Celeb-synthesis/FaceSwap/Celeb-DF-v2" in note for note in listing.notes)


def test_listed_videos_of_a_method_that_is_not_there_are_missing(root):
    with (root / LIST).open("a") as file:
        file.write("0 Celeb-synthesis/TalkingFace/FLOAT/id3_0001_test_0002.mp4\n")
    (missing,) = find(root, ListOptions()).missing
    assert (missing.source, missing.video, missing.split) == ("FLOAT", "id3_0001_test_0002", "test")


def test_the_list_of_v2_is_refused(root):
    (root / LIST).write_text("0 Celeb-synthesis/id3_id28_0001.mp4\n")
    with pytest.raises(InputError, match=r"line 1: .* is no label and video of cdfpp"):
        find(root, ListOptions())


def test_a_contradicting_label_is_refused(root):
    (root / LIST).write_text("1 Celeb-synthesis/FaceSwap/SimSwap/id3_id28_0001.mp4\n")
    with pytest.raises(InputError, match="contradicts its folder"):
        find(root, ListOptions())


def test_a_method_cannot_be_named_real(root):
    touch(root / "Celeb-synthesis/FaceSwap/real", "id3_id28_0001")
    with pytest.raises(InputError, match="method folder named 'real'"):
        find(root, ListOptions())
