from pathlib import Path

import pytest

from dfdet.errors import InputError
from shards.datasets.deepspeak import find
from shards.source import Listing, ListOptions, Missing

V1 = (
    ",video-file,kind,engine,identity-source,identity-target,recording-source,recording-target,"
    "recording-target-ai-generated,gesture-type,script-type\n"
    "0,facefusion--10-11--4100-4897--0.mp4,face-swap,facefusion,10,11,4100,4897,False,no-gesture,scripted\n"
    "1,wav2lip--11-11--4897-5000--1.mp4,lip-sync,wav2lip,11,11,4897,5000,True,no-gesture,scripted\n"
)
V2 = (
    "video-file,kind,engine,identity-source,identity-target,recording-source,recording-target,audio-config,"
    "gen-config,gesture-type,script-type\n"
    "facefusion-10294-6880.mp4,face-swap,facefusion,377,284,10294,6880,real,simswap,no-gesture,scripted\n"
)
REALS = "video-file,identity\n11-4897.mp4,11\n12-1.mp4,12\n"
SPLITS = ",identity,split\n0,11,train\n1,12,test\n2,284,Test\n"
ALL = ("11-4897.mp4", "12-1.mp4", "facefusion--10-11--4100-4897--0.mp4", "wav2lip--11-11--4897-5000--1.mp4")


def tree(root: Path, *files: str, fakes: str = V1, reals: str = REALS, splits: str = SPLITS) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in (("real", reals), ("fake", fakes), ("split-def", splits)):
        (root / f"annotations-{name}.csv").write_text(content)
    for file in files:
        (root / "dataset" / "0").mkdir(parents=True, exist_ok=True)
        (root / "dataset" / "0" / file).touch()
    return root


def listed(root: Path, **options) -> Listing:
    return find(root, ListOptions(**options))


def test_labels_methods_and_splits_come_from_the_annotations(tmp_path):
    listing = listed(tree(tmp_path, *ALL))
    assert {(video.source, video.identity, video.split) for video in listing.videos} == {
        ("real", "11", "train"),
        ("real", "12", "test"),
        ("facefusion", "11", "train"),
        ("wav2lip", "11", "train"),
    }
    assert listing.missing == ()


def test_a_face_swap_has_the_group_of_its_target_recording(tmp_path):
    groups = {video.video: (video.group, video.group_level) for video in listed(tree(tmp_path, *ALL)).videos}
    assert groups["facefusion--10-11--4100-4897--0"] == groups["11-4897"] == ("deepspeak/11-4897", "exact")


def test_a_lip_sync_has_the_group_of_its_person_only(tmp_path):
    groups = {video.source: (video.group, video.group_level) for video in listed(tree(tmp_path, *ALL)).videos}
    assert groups["wav2lip"] == ("deepspeak/11", "identity")


@pytest.mark.parametrize(("fakes", "dataset"), [(V1, "deepspeak-v1"), (V2, "deepspeak-v2")])
def test_columns_tell_the_release(tmp_path, fakes, dataset):
    assert listed(tree(tmp_path, fakes=fakes)).dataset == dataset


def test_a_release_that_the_columns_do_not_tell_must_be_given(tmp_path):
    plain = V2.replace("audio-config", "voice")
    tree(tmp_path, fakes=plain)
    with pytest.raises(InputError, match="give --release v1 or v2"):
        listed(tmp_path)
    assert listed(tmp_path, release="v2").dataset == "deepspeak-v2"


@pytest.mark.parametrize("release", ["v3", "v2"])
def test_a_release_that_is_wrong_is_refused(tmp_path, release):
    with pytest.raises(InputError, match=f"--release '{release}'"):
        listed(tree(tmp_path), release=release)


def test_what_is_named_and_absent_is_missing(tmp_path):
    listing = listed(tree(tmp_path, *ALL[:3]))
    assert listing.missing == (
        Missing("wav2lip", "wav2lip--11-11--4897-5000--1", "train", "annotations-fake.csv"),
    )


@pytest.mark.parametrize("name", ["real", "fake", "split-def"])
def test_an_absent_annotation_file_is_named(tmp_path, name):
    (tree(tmp_path) / f"annotations-{name}.csv").unlink()
    with pytest.raises(InputError, match=rf"lacks annotations-{name}\.csv"):
        listed(tmp_path)


def test_annotation_files_may_lie_in_the_folder_of_splits(tmp_path):
    tree(tmp_path / "lists")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "12-1.mp4").touch()
    listing = listed(tmp_path / "root", splits=tmp_path / "lists")
    assert [video.name for video in listing.videos] == ["real/12-1"]


def test_an_absent_column_is_named(tmp_path):
    with pytest.raises(InputError, match="lacks column 'kind'"):
        listed(tree(tmp_path, fakes=V1.replace(",kind,", ",sort,")))


def test_columns_with_underscores_are_the_same(tmp_path):
    fakes = V2.replace("-source", "_source").replace("-target", "_target").replace("video-file", "video_file")
    listing = listed(tree(tmp_path, "facefusion-10294-6880.mp4", fakes=fakes))
    assert [video.group for video in listing.videos] == ["deepspeak/284-6880"]


def test_persons_without_a_split_are_counted_and_left_out(tmp_path):
    listing = listed(tree(tmp_path, *ALL, splits="identity,split\n11,train\n"))
    assert {video.identity for video in listing.videos} == {"11"}
    assert [note for note in listing.notes if "annotations-split-def.csv does not name: 1" in note]


def test_a_person_in_two_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match="person '11' is in two splits"):
        listed(tree(tmp_path, splits="identity,split\n11,train\n11,test\n"))


def test_an_unknown_split_is_refused_with_its_line(tmp_path):
    with pytest.raises(InputError, match="line 2: split 'dev'"):
        listed(tree(tmp_path, splits="identity,split\n11,dev\n"))


def test_names_that_leave_the_dataset_are_left_out(tmp_path):
    listing = listed(tree(tmp_path, *ALL, reals=REALS + "../../secret.mp4,11\n"))
    assert len(listing.videos) == 4
    assert [note for note in listing.notes if "no path: 1" in note]
