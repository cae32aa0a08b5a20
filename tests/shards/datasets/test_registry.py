import builtins
import json
import os
from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets import DATASETS, find_videos
from shards.source import ListOptions

NAMES = {
    "ffpp", "faceshifter", "dfd", "deeperforensics", "cdfv2", "cdfpp", "uadfv", "ffiw", "dfdc", "dfdcp",
    "deepspeak", "wilddeepfake", "kodf", "fakeavceleb", "crops", "own",
}  # fmt: skip


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def uadfv(tmp_path) -> Path:
    touch(tmp_path / "real", "0000.mp4")
    touch(tmp_path / "fake", "0000_fake.mp4")
    return tmp_path


@pytest.fixture
def ffpp(tmp_path) -> Path:
    touch(tmp_path / "original_sequences/youtube/c23/videos", "000.mp4", "001.mp4")
    for method in ("Deepfakes", "FaceSwap"):
        touch(tmp_path / f"manipulated_sequences/{method}/c23/videos", "000_001.mp4")
    for split, pairs in {"train": [["000", "001"]], "val": [], "test": []}.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(pairs))
    return tmp_path


def test_every_dataset_is_known_by_its_name_on_the_command_line():
    assert set(DATASETS) == NAMES


def test_an_unknown_dataset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InputError, match=r"--dataset 'ff\+\+' is unknown; there are cdfpp, cdfv2, .*wilddeepfake"
    ):
        find_videos("ff++", tmp_path, ListOptions())


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    touch(tmp_path, "file")
    for root in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(InputError, match="is no folder; give the folder of the dataset"):
            find_videos("ffpp", root, ListOptions())


@pytest.mark.parametrize(
    ("dataset", "layout"),
    [
        ("ffpp", "original_sequences/youtube"),
        ("faceshifter", "manipulated_sequences/FaceShifter"),
        ("dfd", "original_sequences/actors"),
        ("deeperforensics", "manipulated_videos/<variant>"),
        ("cdfv2", "Celeb-real,YouTube-real,Celeb-synthesis"),
        ("cdfpp", "FaceSwap,FaceReenact,TalkingFace"),
        ("uadfv", "NNNN_fake"),
        ("ffiw", "source,target,target_mask"),
    ],
)
def test_a_root_without_videos_is_refused_with_the_layout(tmp_path, dataset, layout):
    with pytest.raises(InputError, match=f"holds no video of {dataset}; looked for .*{layout}"):
        find_videos(dataset, tmp_path, ListOptions())


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("uadfv", {"compression": "c23"}, "--compression c23: uadfv .* it is for ffpp, faceshifter, dfd"),
        ("cdfv2", {"compression": "c23"}, "--compression c23: cdfv2 has no use for it"),
        ("ffpp", {"release": "v1"}, "--release v1: ffpp .* it is for deepspeak"),
        ("dfd", {"splits": Path()}, "--splits .: dfd has no use for it"),
        ("ffiw", {"labels": Path("a.csv")}, "--labels a.csv: ffiw has no use for it"),
        ("ffpp", {"splits": Path("no such folder")}, "--splits no such folder is no folder"),
    ],
)
def test_an_option_that_a_dataset_cannot_use_is_refused(tmp_path, dataset, options, message):
    with pytest.raises(InputError, match=message):
        find_videos(dataset, tmp_path, ListOptions(**options))


def test_methods_keep_the_reals(ffpp):
    listing = find_videos("ffpp", ffpp, ListOptions(methods=("DF",)))
    assert {video.name for video in listing.videos} == {"real/000", "real/001", "DF/000_001"}
    assert {each.source for each in listing.missing} == {"DF"}


def test_a_method_that_is_not_there_is_refused_with_those_that_are(ffpp):
    with pytest.raises(
        InputError, match="--methods 'Deepfakes': no video is of that method; there are DF, FS"
    ):
        find_videos("ffpp", ffpp, ListOptions(methods=("DF", "Deepfakes")))


def test_a_source_of_which_nothing_is_there_is_one_note(ffpp):
    listing = find_videos("ffpp", ffpp, ListOptions())
    assert {(each.source, each.video) for each in listing.missing} == {("DF", "001_000"), ("FS", "001_000")}
    assert set(listing.notes) == {
        "no video of F2F is there; 2 are named",
        "no video of NT is there; 2 are named",
    }


def test_two_videos_of_one_name_are_refused(tmp_path):
    for folder in ("Celeb-real", "YouTube-real"):
        touch(tmp_path / folder, "00000.mp4")
    (tmp_path / "List_of_testing_videos.txt").write_text("1 YouTube-real/00000.mp4\n")
    with pytest.raises(InputError, match=r"two videos are named 'real/00000': .*Celeb-real.*YouTube-real"):
        find_videos("cdfv2", tmp_path, ListOptions())


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "two\nlines", "видео", "a%2Fb", "-rf"])
def test_odd_names_are_listed(uadfv, name):
    touch(uadfv / "real", f"{name}.mp4")
    assert f"real/{name}" in {video.name for video in find_videos("uadfv", uadfv, ListOptions()).videos}


def test_a_name_that_is_no_utf8_is_listed(uadfv):
    touch(uadfv / "real", os.fsdecode(b"\xff.mp4"))
    assert "real/\\xff" in {video.name for video in find_videos("uadfv", uadfv, ListOptions()).videos}


def test_loops_of_links_do_not_hold_it_up(uadfv):
    (uadfv / "real" / "loop").symlink_to(uadfv)
    (uadfv / "real" / "self.mp4").symlink_to("self.mp4")
    names = {video.name for video in find_videos("uadfv", uadfv, ListOptions()).videos}
    assert names == {"real/0000", "real/self", "UADFV/0000_fake"}


def test_no_video_is_opened(uadfv, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise AssertionError(f"opened {path}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert len(find_videos("uadfv", uadfv, ListOptions()).videos) == 2
