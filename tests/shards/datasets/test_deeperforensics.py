from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.deeperforensics import find
from shards.source import ListOptions
from tests.shards.datasets.trees import by_name, touch

LISTS = {"train": "000_M101.mp4\n001_W004.mp4\n", "val": "002_M102.mp4\n", "test": "003_W101.mp4\n"}
FAKES = ("000_M101", "001_W004", "002_M102", "003_W101")


@pytest.fixture
def root(tmp_path) -> Path:
    for variant in ("end_to_end", "end_to_end_level_1", "reenact_postprocess"):
        touch(tmp_path / "manipulated_videos" / variant, *FAKES)
    (tmp_path / "lists/splits").mkdir(parents=True)
    for split, content in LISTS.items():
        (tmp_path / f"lists/splits/{split}.txt").write_text(content)
    return tmp_path


def test_only_the_papers_variant_is_taken_and_the_others_are_told(root):
    listing = find(root, ListOptions())
    assert {video.source for video in listing.videos} == {"end_to_end"}
    assert (
        "only end_to_end is taken; --methods names others: end_to_end_level_1, reenact_postprocess"
        in listing.notes
    )


def test_variants_are_there_for_who_asks(root):
    listing = find(root, ListOptions(methods=("end_to_end_level_1",)))
    assert {video.source for video in listing.videos} == {
        "end_to_end", "end_to_end_level_1", "reenact_postprocess"
    }  # fmt: skip


def test_groups_are_those_of_ffpp_and_splits_those_of_the_lists(root):
    videos = by_name(find(root, ListOptions()))
    found = {name: (video.group, video.group_level, video.split) for name, video in videos.items()}
    assert found == {
        "end_to_end/000_M101": ("ffpp/000", "exact", "train"),
        "end_to_end/001_W004": ("ffpp/001", "exact", "train"),
        "end_to_end/002_M102": ("ffpp/002", "exact", "val"),
        "end_to_end/003_W101": ("ffpp/003", "exact", "test"),
    }


def test_a_real_of_ffpp_has_the_split_of_its_fake(root):
    touch(root / "original_sequences/youtube/c23/videos", "002")
    real = by_name(find(root, ListOptions()))["real/002"]
    assert (real.group, real.split, real.compression) == ("ffpp/002", "val", "c23")


def test_source_videos_are_not_reals(root):
    touch(root / "source_videos/M101/light_up", "M101_light_up_happy_camera_front")
    assert all(video.label == 1 for video in find(root, ListOptions()).videos)


def test_it_is_told_where_reals_belong(root):
    notes = find(root, ListOptions()).notes
    assert any("no real is in original_sequences/youtube/c23/videos" in note for note in notes)


@pytest.mark.parametrize("line", ["000_M101", "000_M101.mp4 1", "end_to_end/000_M101.mp4"])
def test_lines_may_lack_a_suffix_or_have_a_label_or_folder(root, line):
    (root / "lists/splits/train.txt").write_text(f"{line}\n")
    assert by_name(find(root, ListOptions()))["end_to_end/000_M101"].split == "train"


def test_a_line_of_another_form_is_refused_with_its_number(root):
    (root / "lists/splits/val.txt").write_text("002_M102.mp4\n\nW004.mp4\n")
    with pytest.raises(InputError, match=r"val\.txt line 3: 'W004\.mp4' is no name like"):
        find(root, ListOptions())


def test_a_name_in_two_lists_is_refused(root):
    (root / "lists/splits/test.txt").write_text("000_M101.mp4\n")
    with pytest.raises(InputError, match=r"test\.txt line 1: 000_M101 is in lists/splits/train\.txt too"):
        find(root, ListOptions())


def test_without_lists_it_is_refused(root):
    (root / "lists/splits/test.txt").unlink()
    with pytest.raises(InputError, match=r"lacks test\.txt"):
        find(root, ListOptions())


def test_a_listed_fake_that_is_not_there_is_missing(root):
    (root / "manipulated_videos/end_to_end/003_W101.mp4").unlink()
    missing = {(each.source, each.video, each.split) for each in find(root, ListOptions()).missing}
    assert ("end_to_end", "003_W101", "test") in missing


def test_other_variants_alone_must_be_asked_for(tmp_path):
    touch(tmp_path / "manipulated_videos/reenact_postprocess", *FAKES)
    with pytest.raises(InputError, match="--methods can name reenact_postprocess"):
        find(tmp_path, ListOptions())
