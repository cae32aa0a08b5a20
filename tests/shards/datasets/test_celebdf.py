from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.celebdf import LIST, find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name, touch

LINES = """\
1 YouTube-real/00170.mp4
1 Celeb-real/id0_0000.mp4
0 Celeb-synthesis/id0_id1_0000.mp4
"""


@pytest.fixture
def root(tmp_path) -> Path:
    touch(tmp_path / "Celeb-real", "id0_0000", "id1_0007")
    touch(tmp_path / "YouTube-real", "00170", "00171")
    touch(tmp_path / "Celeb-synthesis", "id0_id1_0000", "id0_id2_0000", "id1_id0_0007")
    (tmp_path / LIST).write_text(LINES)
    return tmp_path


def test_folders_tell_the_label(root):
    listing = find(root, ListOptions())
    assert listing.dataset == "cdfv2"
    assert {video.name: video.label for video in listing.videos} == {
        "real/id0_0000": 0,
        "real/id1_0007": 0,
        "real/00170": 0,
        "real/00171": 0,
        "Celeb-synthesis/id0_id1_0000": 1,
        "Celeb-synthesis/id0_id2_0000": 1,
        "Celeb-synthesis/id1_id0_0007": 1,
    }


def test_what_the_list_names_is_test_and_the_rest_train(root):
    videos = find(root, ListOptions()).videos
    assert {video.name for video in videos if video.split == "test"} == {
        "real/00170", "real/id0_0000", "Celeb-synthesis/id0_id1_0000"
    }  # fmt: skip
    assert {video.split for video in videos} == {"train", "test"}


def test_the_group_of_a_fake_is_the_video_that_got_the_other_face(root):
    videos = by_name(find(root, ListOptions()))
    fake = videos["Celeb-synthesis/id1_id0_0007"]
    assert fake.group == videos["real/id1_0007"].group == "cdfv2/id1_0007"
    assert (fake.group_level, fake.identity, videos["real/id1_0007"].identity) == ("exact", "id1", "id1")


def test_a_youtube_real_has_a_group_of_its_own_and_no_person(root):
    video = by_name(find(root, ListOptions()))["real/00170"]
    assert (video.group, video.group_level, video.identity) == ("cdfv2/00170", "exact", None)


def test_a_fake_of_another_name_has_no_group(root):
    touch(root / "Celeb-synthesis", "id0_id1_0000 (1)")
    video = by_name(find(root, ListOptions()))["Celeb-synthesis/id0_id1_0000 (1)"]
    assert (video.group, video.group_level, video.identity) == (None, "none", None)


@pytest.mark.parametrize("line", ["0 Celeb-real/id0_0000.mp4", "1 Celeb-synthesis/id0_id1_0000.mp4"])
def test_a_label_that_contradicts_its_folder_is_refused_with_its_line(root, line):
    (root / LIST).write_text(f"1 YouTube-real/00170.mp4\n\n{line}\n")
    with pytest.raises(
        InputError, match=rf"line 3: '{line}' contradicts its folder: in this list 1 means real"
    ):
        find(root, ListOptions())


@pytest.mark.parametrize(
    "line",
    [
        "Celeb-real/id0_0000.mp4",
        "2 Celeb-real/id0_0000.mp4",
        "1",
        "0 Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000.mp4",
        "1 ../Celeb-real/id0_0000.mp4",
    ],
)
def test_a_line_of_another_form_or_release_is_refused(root, line):
    (root / LIST).write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"line 1: .* is no label and video of cdfv2"):
        find(root, ListOptions())


def test_without_the_list_nothing_gets_into_train(root):
    (root / LIST).unlink()
    with pytest.raises(InputError, match=rf"{LIST}.*without it a test video could get into train"):
        find(root, ListOptions())


def test_the_list_can_lie_elsewhere(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    (root / LIST).rename(elsewhere / LIST)
    listing = find(root, ListOptions(splits=elsewhere))
    assert sum(video.split == "test" for video in listing.videos) == 3


def test_a_folder_that_the_list_passes_over_is_all_test(root):
    (root / LIST).write_text("1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    listing = find(root, ListOptions())
    assert by_name(listing)["real/00171"].split == "test"
    assert by_name(listing)["real/id1_0007"].split == "train"
    assert listing.notes == (f"{LIST} names nothing of YouTube-real: its 2 videos are all test",)


def test_a_listed_video_that_is_not_there_is_missing(root):
    (root / "YouTube-real/00170.mp4").unlink()
    (missing,) = find(root, ListOptions()).missing
    assert (missing.source, missing.video, missing.split, missing.told_by) == ("real", "00170", "test", LIST)


def test_videos_moved_into_a_folder_videos_are_found(root):
    for folder in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        (root / folder).rename(root / "videos")
        (root / folder).mkdir()
        (root / "videos").rename(root / folder / "videos")
    assert len(find(root, ListOptions()).videos) == 7
