import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdet.errors import InputError
from dfdet.schema import CropRecipe
from shards.options import VideoSets
from shards.plan import SPLITS, plan_sets, select, unit_of
from shards.source import Listing, Missing, Video

CROP = CropRecipe(template="gend", scale=1.6, size_px=320)


def real(name, split="train", **more):
    return Video(Path(f"{name}.mp4"), "real", name, split, f"ffpp/{name}", "exact", **more)


def fake(name, method="DF", split="train", **more):
    group = f"ffpp/{name[:3]}"
    return Video(Path(method) / f"{name}.mp4", method, name, split, group, "exact", **more)


def listing(*videos, missing=(), notes=()):
    return Listing("ffpp-c23", tuple(videos), tuple(missing), tuple(notes))


def plans(videos, root=Path(), crop=CROP, missing=(), **chosen):
    options = VideoSets(dataset="ffpp", root=root, out=Path("out"), **chosen)
    return plan_sets(options, "ffpp-c23", select(listing(*videos, missing=missing), (), "refuse"), crop)


def names(plan):
    return [job.video.name for part in plan.parts for job in part.jobs]


def test_there_is_a_set_for_each_split_in_order():
    made = plans([real("000", "test"), real("001", "train"), real("002", "val")])
    assert [(plan.name, plan.split, plan.videos) for plan in made] == [
        ("ffpp-c23-train", "train", 1),
        ("ffpp-c23-val", "val", 1),
        ("ffpp-c23-test", "test", 1),
    ]


def test_a_set_without_split_bears_the_bare_name():
    assert plans([real("000", "all")])[0].name == "ffpp-c23"


def test_a_given_name_replaces_the_datasets():
    assert plans([real("000")], name="mine")[0].name == "mine-train"


@given(
    st.lists(st.sampled_from([f"{number:03d}" for number in range(30)]), min_size=1, unique=True),
    st.integers(1, 200),
    st.randoms(),
)
def test_every_video_is_planned_once_and_a_group_lies_in_one_part(numbers, shard_samples, random):
    videos = [real(number) for number in numbers] + [fake(f"{number}_999") for number in numbers]
    random.shuffle(videos)
    (plan,) = plans(videos, shard_samples=shard_samples)
    assert sorted(names(plan)) == sorted(video.name for video in videos)
    groups = [{job.video.group for job in part.jobs} for part in plan.parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert [part.name[:6] for part in plan.parts] == [f"{number:06d}" for number in range(len(plan.parts))]


@given(st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_listing(random):
    videos = [real(f"{number:03d}") for number in range(9)] + [
        fake(f"{number:03d}_999") for number in range(9)
    ]
    shuffled = list(videos)
    random.shuffle(shuffled)
    assert plans(videos, shard_samples=64) == plans(shuffled, shard_samples=64)


def test_a_part_holds_no_more_samples_than_asked_unless_one_group_does():
    videos = [real(f"{number:03d}") for number in range(8)] + [
        fake("000_001", method) for method in ("DF", "F2F", "FS")
    ]
    (plan,) = plans(videos, frames=10, shard_samples=20)
    sizes = [10 * len(part.jobs) for part in plan.parts]
    assert max(sizes) == 40
    assert all(size <= 20 for part, size in zip(plan.parts, sizes, strict=True) if len(part.units) > 1)


def test_an_image_counts_as_one_sample():
    videos = [real(f"{number:03d}", kind="image") for number in range(20)]
    (plan,) = plans(videos, frames=32, shard_samples=10)
    assert [len(part.jobs) for part in plan.parts] == [10, 10]


def test_siblings_are_the_others_of_an_exact_group():
    videos = [real("000"), fake("000_001"), fake("000_001", "FS")]
    (plan,) = plans(videos)
    for job in plan.parts[0].jobs:
        assert {other.name for other in job.siblings} == {video.name for video in videos} - {job.video.name}


def test_members_of_an_identity_group_are_no_siblings():
    person = {"split": "test", "group": "kodf/7", "group_level": "identity"}
    videos = [
        Video(Path(f"{name}.mp4"), source, name, **person) for source, name in [("real", "a"), ("F", "b")]
    ]
    (plan,) = plans(videos)
    assert [job.siblings for job in plan.parts[0].jobs] == [(), ()]
    assert len(plan.parts[0].units) == 1


def test_a_group_across_splits_is_refused_with_its_name():
    with pytest.raises(InputError, match=r"1 groups .*'ffpp/000' in train and test.*--only test"):
        select(listing(real("000", "train"), fake("000_001", split="test"), real("005")), (), "refuse")


def test_one_of_the_splits_alone_is_no_leak():
    chosen = select(listing(real("000", "train"), fake("000_001", split="test")), ("test",), "refuse")
    assert [video.name for video in chosen.videos] == ["DF/000_001"]


def test_a_leak_can_be_dropped_from_the_earlier_split():
    videos = [real("000", "train"), fake("000_001", split="test"), real("005", "train")]
    chosen = select(listing(*videos), (), "drop")
    assert [video.name for video in chosen.videos] == ["DF/000_001", "real/005"]
    assert chosen.notes == ("1 videos dropped: 1 groups lie in a later split too",)


def test_videos_without_group_leak_by_their_name():
    twice = [Video(Path(f"{split}/a.mp4"), "real", "a", split) for split in ("train", "test")]
    with pytest.raises(InputError, match="'real/a'"):
        select(listing(*twice), (), "refuse")


def test_a_person_in_two_splits_is_told():
    videos = [
        real("000", "train", identity="x"),
        real("001", "test", identity="x"),
        real("002", identity="y"),
    ]
    assert select(listing(*videos), (), "refuse").notes == (
        "1 persons are in more than one split, as the dataset's own lists have it",
    )


def test_a_split_without_videos_is_refused():
    with pytest.raises(InputError, match=r"--only val: no video .* there are train, test"):
        select(listing(real("000"), real("001", "test")), ("val",), "refuse")


def test_what_is_missing_goes_with_its_split():
    missing = [Missing("DF", "000_001", split, "splits/x.json") for split in ("train", "test")]
    train, test = plans([real("000"), real("001", "test")], missing=missing)
    assert train.missing == test.missing == ("DF/000_001",)
    assert select(listing(real("000"), missing=missing), ("train",), "refuse").missing == (missing[0],)


def test_the_fingerprint_changes_with_all_that_changes_a_sample(tmp_path):
    (tmp_path / "000.mp4").write_bytes(b"1")
    video = dataclasses.replace(real("000"), path=tmp_path / "000.mp4")
    base = plans([video], tmp_path)[0].sha256
    others = [
        plans([video], tmp_path, frames=16),
        plans([video], tmp_path, pick="random"),
        plans([video], tmp_path, threshold=0.6),
        plans([video], tmp_path, format="png"),
        plans([video], tmp_path, crop=CROP.model_copy(update={"detector_weights_sha256": "0" * 64})),
        plans([dataclasses.replace(video, identity="x")], tmp_path),
        plans([dataclasses.replace(video, mask=tmp_path / "000.mp4")], tmp_path),
    ]
    (tmp_path / "000.mp4").write_bytes(b"12")
    others.append(plans([video], tmp_path))
    assert len({base, *(made[0].sha256 for made in others)}) == 1 + len(others)


def test_the_fingerprint_keeps_when_only_the_place_or_the_workers_change(tmp_path):
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000.mp4").write_bytes(b"1")
        video = dataclasses.replace(real("000"), path=tmp_path / name / "000.mp4")
        made.append(plans([video], tmp_path / name, workers=len(made), max_failed=0.5 * len(made)))
    assert made[0][0].sha256 == made[1][0].sha256


def test_a_missing_file_and_a_folder_have_fingerprints(tmp_path):
    (tmp_path / "frames").mkdir()
    video = dataclasses.replace(real("000"), path=tmp_path / "frames", kind="folder")
    empty = plans([video], tmp_path)[0].sha256
    (tmp_path / "frames" / "1.png").write_bytes(b"1")
    assert plans([video], tmp_path)[0].sha256 != empty
    assert plans([dataclasses.replace(video, path=tmp_path / "gone")], tmp_path)[0].sha256


def test_the_unit_of_a_video_is_its_group_or_its_name():
    assert unit_of(fake("000_001")) == "ffpp/000"
    assert unit_of(Video(Path("a"), "real", "a", "test")) == "real/a"
    assert set(SPLITS) == {"train", "val", "test", "all"}
