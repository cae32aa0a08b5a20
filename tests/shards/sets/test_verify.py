import hashlib
import io
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dfdet.errors import ShardSetError
from dfdet.schema import CropRecipe, Sample, index_schema
from shards.foreign.index import IndexTars, index_tars
from shards.sets.verify import MAX_PROBLEMS, verify_set
from shards.sets.write import ShardWriter


@pytest.fixture
def made(tmp_path) -> Path:
    with ShardWriter(
        tmp_path, "set", dataset="d", split="all", crop=CropRecipe(), max_shard_bytes=20_480
    ) as out:
        for group in range(12):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (group, 0, 0)).save(buffer, "png")
            sample = Sample(
                dataset="d", source="real", label=0, video=f"v{group}", frame=0, group=f"d/{group}",
                group_level="exact",
            )  # fmt: skip
            out.add_group([(sample, "png", buffer.getvalue(), 8, 8)])
    return out.manifest_path


def index_rows(manifest: Path) -> list[dict]:
    return pq.read_table(manifest.with_suffix(".parquet")).to_pylist()


def rewrite_index(manifest: Path, rows: list[dict]) -> None:
    """Replaces the index, with a manifest that agrees to its bytes."""
    columns = {name: [row[name] for row in rows] for name in index_schema().names}
    path = manifest.with_suffix(".parquet")
    pq.write_table(pa.table(columns, schema=index_schema()), path)
    agree(manifest, "index", path)


def agree(manifest: Path, where: str, path: Path) -> None:
    content = json.loads(manifest.read_text())
    entries = content["shards"] if where == "shards" else [content["index"]]
    entry = next(entry for entry in entries if entry["file"] == path.name)
    data = path.read_bytes()
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(content))


def shard(manifest: Path, number: int = 0) -> Path:
    return manifest.parent / f"set-{number:06d}.tar"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_written_set_is_sound(made):
    assert shard(made, 1).exists()
    assert verify_set(made) == []


def test_flipped_bit_is_found_in_file_and_sample(made):
    row = index_rows(made)[2]
    flip(shard(made), row["offset"] + row["size"] // 2)
    problems = verify_set(made)
    assert any("sha256" in problem for problem in problems)
    assert any("d/real/v2/000000" in problem and "crc32" in problem for problem in problems)


def test_image_that_does_not_decode_is_found_though_all_checksums_agree(made):
    rows = index_rows(made)
    flip(shard(made), rows[0]["offset"])
    with shard(made).open("rb") as file:
        file.seek(rows[0]["offset"])
        rows[0]["crc32"] = zlib.crc32(file.read(rows[0]["size"]))
    rewrite_index(made, rows)
    agree(made, "shards", shard(made))
    (problem,) = verify_set(made)
    assert "'d/real/v0/000000': the image does not decode" in problem


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_tar_is_found(made, kept):
    data = shard(made).read_bytes()
    shard(made).write_bytes(data[: int(len(data) * kept)])
    problems = "\n".join(verify_set(made))
    assert "bytes, not" in problems
    assert ("two zero blocks" in problems) or kept > 0.9


def test_cut_end_blocks_are_found_though_all_checksums_agree(made):
    shard(made).write_bytes(shard(made).read_bytes().rstrip(b"\0"))
    data = shard(made).read_bytes()
    shard(made).write_bytes(data + bytes(-len(data) % 512))
    agree(made, "shards", shard(made))
    assert verify_set(made) == ["set-000000.tar: does not end in two zero blocks: it was cut off"]


def test_missing_shard_is_found(made):
    shard(made, 1).unlink()
    assert verify_set(made) == ["set-000001.tar: is missing"]


def test_stale_shard_is_found(made):
    shard(made, 77).write_bytes(b"")
    assert verify_set(made) == ["set-000077.tar: is not in the manifest"]


def test_changed_index_file_is_found(made):
    flip(made.with_suffix(".parquet"), 6)
    assert any("set.parquet: sha256" in problem for problem in verify_set(made))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", 1024),
        ("size", 5),
        ("crc32", 7),
        ("width", 9),
        ("label", 1),
        ("group", "d/x"),
        ("ext", "jpg"),
    ],
)
def test_edited_index_row_is_found(made, column, value):
    rows = index_rows(made)
    rows[1][column] = value
    rewrite_index(made, rows)
    assert any("'d/real/v1/000000'" in problem for problem in verify_set(made))


def test_row_without_sample_is_found(made):
    rows = index_rows(made)
    rows[0]["key"] = "d/real/other/000000"
    rewrite_index(made, rows)
    problems = "\n".join(verify_set(made))
    assert "sample 'd/real/v0/000000' is not in the index" in problems
    assert "sample 'd/real/other/000000' of the index is not in the tar" in problems


def test_group_in_two_shards_is_found(made):
    rows = index_rows(made)
    rows[-1]["group"] = rows[0]["group"]
    rewrite_index(made, rows)
    last = rows[-1]["shard"]
    assert f"set.parquet: group 'd/0' lies in shards [0, {last}]" in verify_set(made)


def test_wrong_counts_in_the_manifest_are_found(made):
    content = json.loads(made.read_text())
    content["by_label"] = {"real": 11, "fake": 1}
    made.write_text(json.dumps(content))
    (problem,) = verify_set(made)
    assert problem.startswith("set.parquet: by_label is {'real': 12, 'fake': 0}, in the manifest")


def test_index_of_other_columns_is_found(made):
    path = made.with_suffix(".parquet")
    pq.write_table(pa.table({"key": ["a"]}), path)
    agree(made, "index", path)
    assert verify_set(made) == ["set.parquet: is no index of format 1; tars were not checked"]


def test_many_problems_of_a_file_are_cut_short(made):
    shard(made).write_bytes(b"")
    rows = index_rows(made) * 4
    rewrite_index(made, rows)
    problems = [problem for problem in verify_set(made) if problem.startswith("set-000000.tar")]
    assert len(problems) <= MAX_PROBLEMS + 2
    assert "problems more" in problems[-1]


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"format_version": 2}'])
def test_path_that_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ShardSetError, match=r"x\.json"):
        verify_set(path)


@pytest.fixture
def foreign(made, tmp_path) -> Path:
    """The tars of a set, indexed again where they lie."""
    tars = tuple(str(path) for path in sorted(made.parent.glob("*.tar")))
    return index_tars(IndexTars(tars=tars, out=tmp_path / "elsewhere", name="theirs"))


def test_a_foreign_set_is_verified_where_its_tars_lie(made, foreign):
    assert verify_set(foreign) == []
    row = index_rows(foreign)[0]
    flip(shard(made), row["offset"] + 1)
    problems = verify_set(foreign)
    assert any("sha256" in problem for problem in problems)
    assert any("fails its checksum" in problem and row["key"] in problem for problem in problems)


def test_a_set_of_urls_is_told_to_lie_elsewhere_without_the_url(foreign):
    content = json.loads(foreign.read_text())
    content["shards"][0]["url"] = "https://host/a.tar?signature=secret"
    foreign.write_text(json.dumps(content))
    with pytest.raises(ShardSetError, match="lies at a URL") as refusal:
        verify_set(foreign)
    assert "secret" not in str(refusal.value)
