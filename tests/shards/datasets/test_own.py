from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.own import SHARES, find
from shards.listing import draw_split
from shards.source import Listing, ListOptions, Missing


def table(root: Path, content: str, *files: str) -> Path:
    root.mkdir(exist_ok=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    path = root / "labels.csv"
    path.write_text(content)
    return path


def listed(root: Path, **options) -> Listing:
    return find(root, ListOptions(**options))


def test_rows_give_label_method_group_identity_and_split(tmp_path):
    content = (
        "file,label,method,group,identity,video,split\n"
        "a.mp4,real,,take1,anna,one,val\n"
        "sub/b.mov,1,swap,take1,anna,,val\n"
    )
    table(tmp_path, content, "a.mp4", "sub/b.mov")
    listing = listed(tmp_path)
    assert listing.dataset == "own"
    assert [video.name for video in listing.videos] == ["real/one", "swap/sub/b.mov"]
    told = {(video.group, video.group_level, video.identity, video.split) for video in listing.videos}
    assert told == {("own/take1", "exact", "anna", "val")}


def test_the_table_may_lie_elsewhere_and_files_are_below_the_root(tmp_path):
    labels = table(tmp_path / "lists", "file,label\na.mp4,fake\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.mp4").touch()
    listing = listed(tmp_path / "root", labels=labels, name="mine")
    assert [(video.path, video.group) for video in listing.videos] == [
        (tmp_path / "root" / "a.mp4", "mine/fake/a.mp4")
    ]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("a.mp4", "video"),
        ("a.JPG", "image"),
        ("a.tar", "archive"),
        ("a.tar.gz", "archive"),
        ("a.tgz", "archive"),
        ("a.unknown", "video"),
        ("frames", "folder"),
    ],
)
def test_folder_and_suffix_tell_the_kind(tmp_path, file, kind):
    table(tmp_path, f"file,label\n{file},real\n", "frames/0.png", *([file] if file != "frames" else []))
    assert [(video.kind, video.ready) for video in listed(tmp_path).videos] == [(kind, False)]


def test_an_absent_file_is_missing_and_no_error(tmp_path):
    table(tmp_path, "file,label,split\na.mp4,real,test\nb.mp4,fake,test\n", "a.mp4")
    listing = listed(tmp_path)
    assert [video.video for video in listing.videos] == ["a.mp4"]
    assert listing.missing == (Missing("fake", "b.mp4", "test", "labels.csv"),)


def test_rows_without_a_split_are_drawn_by_group(tmp_path):
    rows = "".join(f"{number}.mp4,real,g{number // 2},\n" for number in range(200))
    table(tmp_path, "file,label,group,split\n" + rows, *(f"{number}.mp4" for number in range(200)))
    listing = listed(tmp_path)
    assert all(
        video.split == draw_split(video.group.removeprefix("own/"), 0, SHARES) for video in listing.videos
    )
    assert {video.split for video in listing.videos} == {"train", "val", "test"}
    assert [note for note in listing.notes if note.startswith("splits drawn")]


def test_given_splits_need_no_note(tmp_path):
    table(tmp_path, "file,label,split\na.mp4,real,train\n", "a.mp4")
    assert listed(tmp_path).notes == ()


@pytest.mark.parametrize("file", ["../a.mp4", "/etc/passwd", "", "sub/../../a.mp4", "out/a.mp4", "a\0.mp4"])
def test_a_file_outside_of_the_root_is_refused_with_its_line(tmp_path, file):
    (tmp_path / "a.mp4").touch()
    table(tmp_path / "root", f"file,label\nok.mp4,real\n{file},real\n", "ok.mp4")
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"labels\.csv"):
        listed(tmp_path / "root")


@pytest.mark.parametrize(
    "content", ["", "file\na.mp4\n", "file,label\na.mp4,perhaps\n", 'file,label\n"a.mp4,real\n']
)
def test_a_corrupt_table_is_refused(tmp_path, content):
    table(tmp_path, content, "a.mp4")
    with pytest.raises(InputError, match=r"labels\.csv"):
        listed(tmp_path)


def test_an_absent_table_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="with --labels"):
        listed(tmp_path)


@pytest.mark.parametrize("rows", ["a.png,real,v\nb.png,real,v\n", "a.png,real,\na.png,real,\n"])
def test_several_rows_of_one_video_are_refused(tmp_path, rows):
    table(tmp_path, "file,label,video\n" + rows, "a.png", "b.png")
    with pytest.raises(InputError, match="has several rows"):
        listed(tmp_path)


def test_odd_names_and_links_do_no_harm(tmp_path):
    content = (
        'file,label\n"new\nline.mp4",real\nit\'s.mp4,real\n日本.mp4,real\nloop.mp4,real\n'
        + "x" * 300
        + ",real\n"
    )
    table(tmp_path, content, "new\nline.mp4", "it's.mp4", "日本.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    listing = listed(tmp_path)
    assert {video.video for video in listing.videos} == {"new\nline.mp4", "it's.mp4", "日本.mp4", "loop.mp4"}
    assert [each.video for each in listing.missing] == ["x" * 300]
