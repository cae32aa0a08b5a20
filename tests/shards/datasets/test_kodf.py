from pathlib import Path

import pytest

from shards.datasets.kodf import find
from shards.source import ListOptions


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_names_tell_label_person_and_group(tmp_path):
    tree(tmp_path, "original_videos/ab01/ab01_001.mp4", "synthesized_videos/dfl/x/ab01_100001_1_0090.mp4")
    listing = find(tmp_path, ListOptions())
    assert {video.source: video.video for video in listing.videos} == {
        "real": "ab01_001",
        "dfl": "ab01_100001_1_0090",
    }
    assert {(video.group, video.group_level, video.identity, video.split) for video in listing.videos} == {
        ("kodf/ab01", "identity", "ab01", "test")
    }


@pytest.mark.parametrize(
    ("code", "method"), [(1, "dfl"), (2, "dffs"), (3, "fsgan"), (4, "fo"), (5, "audio-driven"), (9, "code-9")]
)
def test_the_code_tells_the_method(tmp_path, code, method):
    listing = find(tree(tmp_path, f"1_2_{code}_0001.mp4"), ListOptions())
    assert [video.source for video in listing.videos] == [method]


def test_other_names_are_counted_and_left_out(tmp_path):
    files = ("noactor.mp4", "1_2_3.mp4", "1_2_3_4_5.mp4", "_007.mp4", "a b_001.mp4", "._1_001.mp4")
    listing = find(tree(tmp_path, "1_001.mp4", *files), ListOptions())
    assert [video.video for video in listing.videos] == ["1_001"]
    assert [note for note in listing.notes if "tells no label: 5" in note]


def test_copies_of_one_name_are_taken_once(tmp_path):
    listing = find(tree(tmp_path, "noise/1_001.mp4", "clean/1_001.mp4"), ListOptions())
    assert [video.path.parent.name for video in listing.videos] == ["clean"]
    assert [note for note in listing.notes if "same name as another: 1" in note]
