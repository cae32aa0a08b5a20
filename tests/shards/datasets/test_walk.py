import os
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets import walk


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_files_are_those_with_a_video_suffix_in_order_of_name(tmp_path):
    touch(tmp_path, "b.mp4", "a.MOV", "c.txt", "d/e.mp4")
    assert names(walk.files(tmp_path)) == ["a.MOV", "b.mp4"]


def test_hidden_and_half_downloaded_files_are_no_videos(tmp_path):
    touch(tmp_path, "a.mp4", "._a.mp4", ".b.mp4", "c.mp4.part", "d.mp4.tmp", "e.part")
    assert names(walk.files(tmp_path)) == ["a.mp4"]


def test_a_folder_named_like_a_video_is_none(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    assert walk.files(tmp_path) == []


def test_an_absent_folder_holds_nothing(tmp_path):
    assert walk.files(tmp_path / "none") == walk.folders(tmp_path / "none") == []


def test_videos_are_found_in_the_folder_named_videos_too(tmp_path):
    touch(tmp_path, "moved/videos/a.mp4", "plain/b.mp4")
    assert names(walk.videos(tmp_path / "moved")) == ["a.mp4"]
    assert names(walk.videos(tmp_path / "plain")) == ["b.mp4"]


def test_hidden_folders_are_passed_over(tmp_path):
    touch(tmp_path, ".cache/a.mp4", "b/c.mp4")
    assert names(walk.folders(tmp_path)) == ["b"]
    assert names(walk.tree(tmp_path)) == ["c.mp4"]


def test_a_tree_follows_links_but_no_loops(tmp_path):
    touch(tmp_path, "a/b.mp4")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "linked").symlink_to(touch(tmp_path / "elsewhere", "c.mp4"))
    found = [path.relative_to(tmp_path).as_posix() for path in walk.tree(tmp_path)]
    assert found == ["a/b.mp4", "elsewhere/c.mp4", "linked/c.mp4"]


def test_a_broken_link_is_listed_so_that_its_failure_is_recorded(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone")
    assert names(walk.files(tmp_path)) == ["a.mp4"]


def test_a_shared_stem_keeps_the_suffix(tmp_path):
    touch(tmp_path, "a.mp4", "a.avi", "b.mp4")
    assert sorted(walk.by_stem(walk.files(tmp_path))) == ["a.avi", "a.mp4", "b"]


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "two\nlines", "видео", "..x"[1:] + "y"])
def test_odd_names_stay_as_they_are(tmp_path, name):
    path = tmp_path / f"x{name}.mp4"
    path.touch()
    assert walk.by_stem(walk.files(tmp_path)) == {f"x{name}": path}


def test_a_name_that_is_no_utf8_becomes_text(tmp_path):
    (tmp_path / os.fsdecode(b"a\xff.mp4")).touch()
    (name,) = walk.by_stem(walk.files(tmp_path))
    assert name == "a\\xff"
    assert name.encode()


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two  \n")
    assert walk.read_numbered_lines(tmp_path / "list.txt") == [(1, "one"), (3, "two")]
    assert walk.read_lines(tmp_path / "list.txt") == ["one", "two"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is no JSON"):
        walk.read_json(tmp_path / "a.json")


def test_a_csv_without_a_needed_column_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("file,label\nx.mp4,0\n")
    with pytest.raises(InputError, match="lacks column 'split'; it has file, label"):
        walk.read_csv(tmp_path / "a.csv", required=["split"])


def test_csv_rows_have_line_numbers_and_stripped_cells(tmp_path):
    (tmp_path / "a.csv").write_text("file , label\n x.mp4, 0\ny.mp4\n")
    assert walk.read_csv(tmp_path / "a.csv") == [
        (2, {"file": "x.mp4", "label": "0"}),
        (3, {"file": "y.mp4", "label": ""}),
    ]
