import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dfdet.errors import ShardSetError
from dfdet.schema import CropRecipe, Failure, Manifest, Sample, Shortfall, index_schema
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from shards.sets.write import Item, ShardWriter, check_no_leak, publish

CROP = CropRecipe(template="demo", scale=1.6, size_px=8)


def image(value: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, 7, 9)).save(buffer, "png")
    return buffer.getvalue()


def item(number: int, frame: int = 0, source: str = "real", payload: bytes | None = None, **changes) -> Item:
    fields = {
        "dataset": "demo",
        "source": source,
        "label": int(source != "real"),
        "video": f"v{number}",
        "frame": frame,
        "group": f"demo/{number}",
        "group_level": "exact",
        "crop": CROP,
        "split": "train",
    }
    return Sample(**fields | changes), "png", payload or image(number + frame), 8, 8


def writer(folder: Path, name: str = "train", **changes) -> ShardWriter:
    return ShardWriter(folder, name, **{"dataset": "demo", "split": "train", "crop": CROP} | changes)


def write(folder: Path, groups: int = 4, name: str = "train", **changes) -> Path:
    with writer(folder, name, **changes) as out:
        for group in range(groups):
            out.add_group(item(group, frame, source) for frame in range(2) for source in ("real", "sbi"))
    return out.manifest_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(manifest: Path) -> list[dict]:
    return pq.read_table(manifest.with_suffix(".parquet")).to_pylist()


def test_webdataset_reads_the_tars_in_index_order(tmp_path):
    manifest = write(tmp_path, max_shard_bytes=20_000)
    tars = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(tars) > 1
    assert [sample["__key__"] for sample in read] == [row["key"] for row in rows(manifest)]
    assert read[0]["png"] == image(0)


def test_json_member_holds_the_sample(tmp_path):
    write(tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        text = tar.extractfile("demo/sbi/v1/000001.json").read()
    assert Sample.model_validate_json(text) == item(1, 1, "sbi")[0]


def test_pread_at_the_index_gives_each_image_with_its_checksum(tmp_path):
    for row in rows(write(tmp_path, max_shard_bytes=20_000)):
        with (tmp_path / f"train-{row['shard']:06d}.tar").open("rb") as file:
            data = os.pread(file.fileno(), row["size"], row["offset"])
        assert data == image(int(row["video"][1:]) + row["frame"])
        assert zlib.crc32(data) == row["crc32"]


def test_offsets_are_true_behind_the_headers_of_long_names(tmp_path):
    with writer(tmp_path) as out:
        out.add_group([item(0, video="人" * 120)])
    row = rows(out.manifest_path)[0]
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getmember(row["key"] + ".png").offset_data == row["offset"]


def test_tar_bytes_equal_those_of_tarfile(tmp_path):
    write(tmp_path)
    buffer = io.BytesIO()
    path = tmp_path / "train-000000.tar"
    with tarfile.open(path) as source, tarfile.open(fileobj=buffer, mode="w") as target:
        for member in source:
            target.addfile(member, source.extractfile(member))
    assert path.read_bytes() == buffer.getvalue()


def test_equal_input_gives_equal_bytes(tmp_path):
    write(tmp_path / "a", max_shard_bytes=20_000)
    write(tmp_path / "b", max_shard_bytes=20_000)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_index_has_the_schema_and_the_values(tmp_path):
    manifest = write(tmp_path)
    table = pq.read_table(manifest.with_suffix(".parquet"))
    assert table.schema.equals(index_schema())
    row = table.to_pylist()[1]
    expected = {"key": "demo/sbi/v0/000000", "ext": "png", "label": 1, "method": "sbi", "group": "demo/0"}
    expected |= {"group_level": "exact", "identity": None, "video": "v0", "frame": 0, "width": 8, "height": 8}
    assert {name: row[name] for name in expected} == expected


def test_manifest_tells_counts_and_checksums(tmp_path):
    failure = Failure(video="demo/real/v9", label=0, reason="no face")
    path = write(tmp_path, max_shard_bytes=20_000, failures=[failure], written_by="test")
    manifest = Manifest.model_validate_json(path.read_bytes())
    assert (manifest.samples, manifest.by_label) == (16, {"real": 8, "fake": 8})
    assert manifest.by_method == {"real": 8, "sbi": 8}
    assert (manifest.failures, manifest.written_by, manifest.split) == ((failure,), "test", "train")
    for entry in (*manifest.shards, manifest.index):
        data = (tmp_path / entry.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.lists(st.integers(1, 6000), min_size=1, max_size=4), min_size=1, max_size=12),
    limit=st.integers(1, 60_000),
)
def test_a_group_never_spans_shards_and_only_a_large_group_exceeds_the_limit(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("set")
    with writer(folder, max_shard_bytes=limit) as out:
        for group, payloads in enumerate(sizes):
            out.add_group(item(group, frame, payload=b"x" * size) for frame, size in enumerate(payloads))
    shards, groups = defaultdict(set), defaultdict(set)
    for row in rows(out.manifest_path):
        shards[row["group"]].add(row["shard"])
        groups[row["shard"]].add(row["group"])
    assert all(len(found) == 1 for found in shards.values())
    assert len(shards) == len(sizes)
    for number, entry in enumerate(out.manifest.shards):
        assert entry.bytes <= limit or len(groups[number]) == 1


def test_shorter_set_of_the_same_name_leaves_no_stale_shard(tmp_path):
    write(tmp_path, groups=12, max_shard_bytes=10_240)
    other = write(tmp_path, name="train-2").name
    write(tmp_path, groups=1)
    expected = {"train-000000.tar", "train.parquet", "train.json"}
    assert set(files(tmp_path)) == expected | {"train-2-000000.tar", "train-2.parquet", other}


def test_exception_leaves_no_file_of_a_new_set(tmp_path):
    with pytest.raises(RuntimeError, match="midway"), writer(tmp_path) as out:
        out.add_group([item(0)])
        raise RuntimeError("midway")
    assert files(tmp_path) == {}


def test_exception_leaves_the_old_set_as_it_was(tmp_path):
    write(tmp_path, max_shard_bytes=10_240)
    before = files(tmp_path)
    with pytest.raises(RuntimeError, match="midway"), writer(tmp_path) as out:
        out.add_group([item(9)])
        raise RuntimeError("midway")
    assert files(tmp_path) == before


KILLED = """
    import os, sys
    from pathlib import Path
    from dfdet.schema import CropRecipe, Sample
    from shards.sets.write import ShardWriter
    {patch}
    with ShardWriter(Path(sys.argv[1]), "train", dataset="d", split="all", crop=CropRecipe()) as out:
        out.add_group([(Sample(dataset="d", source="real", label=0, video="v", frame=0), "png", b"x", 1, 1)])
        {kill}
"""


def killed(folder: Path, patch: str = "", kill: str = "pass") -> None:
    program = textwrap.dedent(KILLED).format(patch=patch, kill=kill)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert done.returncode == 9


def test_kill_while_adding_leaves_the_old_set_and_the_next_writer_sweeps(tmp_path):
    write(tmp_path)
    before = files(tmp_path)
    killed(tmp_path, kill="os._exit(9)")
    remains = tmp_path / ".train.tmp"
    assert (remains / "train-000000.tar").exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    write(tmp_path)
    assert files(tmp_path) == before


def test_kill_while_renaming_leaves_an_unfinished_set_not_a_wrong_one(tmp_path):
    write(tmp_path)
    killed(tmp_path, patch="ShardWriter._move_manifest = lambda self: os._exit(9)")
    assert not (tmp_path / "train.json").exists()


def test_second_writer_of_a_set_is_refused_while_the_first_writes(tmp_path):
    with writer(tmp_path) as out:
        out.add_group([item(0)])
        holder = rf"being written by another process \({os.getpid()} on {socket.gethostname()}\); wait for it"
        for _ in range(2):  # a refused one leaves the name of the first
            with pytest.raises(ShardSetError, match=holder), writer(tmp_path):
                pass
    assert out.manifest.samples == 1


def test_sets_published_together_appear_together_and_withdraw_former_ones(tmp_path):
    former = write(tmp_path, name="former")
    with writer(tmp_path, "a") as a, writer(tmp_path, "b", split="val") as b:
        a.add_group([item(0)])
        b.add_group([item(1, split="val")])
        publish([a, b], withdraw=[former])
    names = {f"{name}{end}" for name in "ab" for end in ("-000000.tar", ".parquet", ".json")}
    assert set(files(tmp_path)) == names


def test_publish_with_an_empty_set_changes_nothing(tmp_path):
    write(tmp_path, name="a")
    before = files(tmp_path)
    with (
        pytest.raises(ShardSetError, match="no sample"),
        writer(tmp_path, "a") as a,
        writer(tmp_path, "b") as b,
    ):
        a.add_group([item(7)])
        publish([a, b])
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([item(0), item(0)], "key 'demo/real/v0/000000' occurs twice"),
        ([item(1), item(2)], "one call holds groups"),
        ([item(0, dataset="other")], "is not of 'demo'"),
        ([item(0, crop=CropRecipe())], "was cut by"),
        ([item(0, split="val")], "has split 'val'"),
        ([(item(0)[0], "bmp", b"x", 1, 1)], "known are jpg, png, webp"),
        ([(item(0)[0], "png", b"", 1, 1)], "0 bytes"),
        ([(item(0)[0], "png", b"x", 0, 1)], "0x1 px"),
    ],
)
def test_bad_sample_is_refused(tmp_path, samples, message):
    with pytest.raises(ShardSetError, match=message), writer(tmp_path) as out:
        out.add_group(samples)


def test_key_of_an_earlier_call_is_refused(tmp_path):
    loose = item(0, group=None, group_level="none")
    with pytest.raises(ShardSetError, match="occurs twice"), writer(tmp_path) as out:
        out.add_group([loose])
        out.add_group([loose])


def test_group_of_an_earlier_call_is_refused(tmp_path):
    with pytest.raises(ShardSetError, match="'demo/0' was already added"), writer(tmp_path) as out:
        out.add_group([item(0)])
        out.add_group([item(0, 1)])


def test_writer_goes_on_after_a_refused_group(tmp_path):
    with writer(tmp_path) as out:
        with pytest.raises(ShardSetError):
            out.add_group([item(0), item(0)])
        out.add_group([item(0)])
    assert out.manifest.samples == 1


def test_samples_of_unknown_group_come_in_any_number_of_calls(tmp_path):
    with writer(tmp_path) as out:
        for video in range(3):
            out.add_group([item(video, group=None, group_level="none")])
    assert [row["group"] for row in rows(out.manifest_path)] == [None] * 3


def test_empty_set_is_refused_with_the_reasons_of_failure(tmp_path):
    failure = Failure(video="demo/real/v", label=0, reason="truncated")
    with pytest.raises(ShardSetError, match=r"no sample was added .*truncated"), writer(tmp_path) as out:
        out.add_failure(failure)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "line\nbreak", "back\\slash"])
def test_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(ShardSetError, match="plain file name"):
        writer(tmp_path, name)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ShardSetError, match="cannot be written"), writer(tmp_path / "file"):
        pass


def leak_set(folder: Path, split: str, **changes) -> Path:
    with writer(folder, split, split=split) as out:
        out.add_group([item(0, split=split, **{"video": split} | changes)])
    return out.manifest_path


def test_disjoint_splits_pass_the_leak_check(tmp_path):
    check_no_leak([leak_set(tmp_path, "train"), leak_set(tmp_path, "val", group="demo/1")])


def test_group_in_two_splits_is_a_leak(tmp_path):
    with pytest.raises(ShardSetError, match=r"group 'demo/0' is in .*train\.json .*val\.json"):
        check_no_leak([leak_set(tmp_path, "train"), leak_set(tmp_path, "val")])


def test_identity_in_two_splits_is_a_leak(tmp_path):
    train = leak_set(tmp_path, "train", identity="ann")
    test = leak_set(tmp_path, "test", identity="ann", group="demo/1")
    with pytest.raises(ShardSetError, match="identity 'demo/ann'"):
        check_no_leak([train, test])


def test_video_of_unknown_group_in_two_splits_is_a_leak(tmp_path):
    unknown = {"video": "v", "group": None, "group_level": "none"}
    with pytest.raises(ShardSetError, match="video 'demo/real/v'"):
        check_no_leak([leak_set(tmp_path, "train", **unknown), leak_set(tmp_path, "test", **unknown)])


def test_group_in_two_sets_of_one_split_is_no_leak(tmp_path):
    check_no_leak([leak_set(tmp_path / "a", "train"), leak_set(tmp_path / "b", "train")])


def test_leak_check_names_a_file_that_is_no_manifest(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(ShardSetError, match="is no manifest"):
        check_no_leak([tmp_path / "x.json"])


def part(folder: Path, number: int, **changes) -> Path:
    """A finished set of one group, as sharding writes its parts."""
    with writer(folder, f"part{number}", **changes) as out:
        out.add_group([item(number, frame) for frame in range(2)])
        out.add_failure(Failure(video=f"demo/real/lost{number}", label=0, reason="has no face"))
        out.add_shortfall(
            Shortfall(
                video=f"demo/real/v{number}", label=0, asked=3, read=3, faces=2, reason="1 without a face"
            )
        )
    return out.manifest_path


def test_adopted_parts_become_one_sound_set(tmp_path):
    parts = [part(tmp_path / "parts", number) for number in range(3)]
    with writer(tmp_path, plan_sha256="f" * 64, missing=["sbi/v9"]) as out:
        for each in parts:
            out.adopt(each)
    manifest = read_manifest(out.manifest_path)
    assert verify_set(out.manifest_path) == []
    assert [entry.file for entry in manifest.shards] == [f"train-{number:06d}.tar" for number in range(3)]
    assert [row["shard"] for row in rows(out.manifest_path)] == [0, 0, 1, 1, 2, 2]
    assert [failure.video for failure in manifest.failures] == [f"demo/real/lost{n}" for n in range(3)]
    assert [short.video for short in manifest.shortfalls] == [f"demo/real/v{n}" for n in range(3)]
    assert (manifest.missing, manifest.plan_sha256) == (("sbi/v9",), "f" * 64)


def test_adopted_tars_are_those_of_the_parts_which_stay(tmp_path):
    each = part(tmp_path / "parts", 0)
    before = files(tmp_path / "parts")
    with writer(tmp_path) as out:
        out.adopt(each)
    assert files(tmp_path / "parts") == before
    assert (tmp_path / "train-000000.tar").read_bytes() == before["part0-000000.tar"]


def test_groups_can_be_added_before_and_after_adopted_ones(tmp_path):
    each = part(tmp_path / "parts", 5)
    with writer(tmp_path) as out:
        out.add_group([item(1)])
        out.adopt(each)
        out.add_group([item(2)])
    assert [row["shard"] for row in rows(out.manifest_path)] == [0, 1, 1, 2]
    assert verify_set(out.manifest_path) == []


def test_a_part_is_not_adopted_twice(tmp_path):
    each = part(tmp_path / "parts", 0)
    with (
        pytest.raises(ShardSetError, match="key 'demo/real/v0/000000' occurs twice"),
        writer(tmp_path) as out,
    ):
        out.adopt(each)
        out.adopt(each)
    assert not list(tmp_path.glob("train*"))


def test_a_group_in_two_parts_is_refused(tmp_path):
    each = part(tmp_path / "parts", 0)
    with pytest.raises(ShardSetError, match="group 'demo/0' was already added"), writer(tmp_path) as out:
        out.add_group([item(0, frame=7)])
        out.adopt(each)


def test_a_part_of_another_recipe_is_refused(tmp_path):
    crop = CropRecipe(template="gend", scale=1.6, size_px=8)
    with writer(tmp_path / "parts", "part", crop=crop) as out:
        out.add_group([item(0, crop=crop)])
    with pytest.raises(ShardSetError, match="another dataset, split or crop recipe"), writer(tmp_path) as to:
        to.adopt(out.manifest_path)


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("links are not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    each = part(tmp_path / "parts", 0)
    with writer(tmp_path) as out:
        out.adopt(each)
    assert verify_set(out.manifest_path) == []
    tar = tmp_path / "train-000000.tar"
    assert tar.stat().st_ino != (tmp_path / "parts" / "part0-000000.tar").stat().st_ino


def test_a_cancelled_writer_leaves_nothing(tmp_path):
    with writer(tmp_path) as out:
        out.add_group([item(0)])
        out.cancel()
    assert not list(tmp_path.iterdir())
