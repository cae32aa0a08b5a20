from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.fakeavceleb import find
from shards.source import Listing, ListOptions, Missing

HEADER = "source,target1,target2,method,category,type,race,gender,path,\n"
WHERE = "Asian (East)/women/id10006"
FILES = {
    "RealVideo-RealAudio": ("00905.mp4", "real"),
    "RealVideo-FakeAudio": ("00905_fake.mp4", "rtvc"),
    "FakeVideo-RealAudio": ("00905_id10005_faceswap.mp4", "faceswap"),
    "FakeVideo-FakeAudio": ("00906_3_id10004_wavtolip.mp4", "fsgan-wav2lip"),
}


def row(kind: str, file: str, method: str) -> str:
    return f"id10006,-,-,{method},A,{kind},Asian (East),women,{file},FakeAVCeleb/{kind}/{WHERE}\n"


def tree(root: Path, rows: str = "", without: str = "") -> Listing:
    for kind, (file, method) in FILES.items():
        rows += row(kind, file, method)
        if kind != without:
            (root / kind / WHERE).mkdir(parents=True, exist_ok=True)
            (root / kind / WHERE / file).touch()
    (root / "meta_data.csv").write_text(HEADER + rows)
    return find(root, ListOptions())


def test_the_picture_tells_the_label_and_the_name_tells_the_type(tmp_path):
    listing = tree(tmp_path)
    assert {(video.source, video.video) for video in listing.videos} == {
        ("real", "RVRA-id10006-00905"),
        ("real", "RVFA-id10006-00905_fake"),
        ("faceswap", "FVRA-id10006-00905_id10005_faceswap"),
        ("fsgan-wav2lip", "FVFA-id10006-00906_3_id10004_wavtolip"),
    }
    assert {(video.split, video.identity) for video in listing.videos} == {("test", "id10006")}
    assert listing.missing == listing.notes == ()


def test_the_group_is_exact_where_the_clip_has_a_real(tmp_path):
    groups = {video.video[:4]: (video.group, video.group_level) for video in tree(tmp_path).videos}
    assert groups["RVRA"] == groups["RVFA"] == groups["FVRA"] == ("fakeavceleb/id10006-00905", "exact")
    assert groups["FVFA"] == ("fakeavceleb/id10006", "identity")


def test_absent_folders_are_told_and_their_videos_missing(tmp_path):
    listing = tree(tmp_path, without="RealVideo-RealAudio")
    assert listing.missing == (Missing("real", "RVRA-id10006-00905", "test", "meta_data.csv"),)
    assert listing.notes == ("RealVideo-RealAudio is not there",)


def test_files_that_the_list_does_not_name_are_counted(tmp_path):
    (tmp_path / "FakeVideo-FakeAudio" / WHERE).mkdir(parents=True)
    (tmp_path / "FakeVideo-FakeAudio" / WHERE / "more.mp4").touch()
    listing = tree(tmp_path)
    assert len(listing.videos) == 4
    assert [note for note in listing.notes if "no list names: 1" in note]


@pytest.mark.parametrize(
    "rows",
    [
        row("FakeVideo-FakeAudio", "..", "faceswap"),
        row("Elsewhere", "00905.mp4", "real"),
        row("FakeVideo-FakeAudio", "", "faceswap"),
        "../..,-,-,faceswap,A,FakeVideo-RealAudio,x,y,a.mp4,\n",
    ],
)
def test_rows_that_name_no_file_are_counted(tmp_path, rows):
    listing = tree(tmp_path, rows)
    assert len(listing.videos) == 4
    assert listing.missing == ()
    assert [note for note in listing.notes if "name no file of the four folders: 1" in note]


def test_a_fake_without_a_method_is_left_out(tmp_path):
    listing = tree(tmp_path, row("FakeVideo-FakeAudio", "00906_3_id10004_wavtolip.mp4", "-"))
    assert [note for note in listing.notes if "without a method: 1" in note]


def test_without_its_list_the_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"meta_data\.csv cannot be read"):
        find(tmp_path, ListOptions())


def test_an_absent_column_is_named(tmp_path):
    (tmp_path / "meta_data.csv").write_text("source,type,race,gender,path\n")
    with pytest.raises(InputError, match="lacks column 'method'"):
        find(tmp_path, ListOptions())
