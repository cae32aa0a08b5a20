"""Checks a shard set from end to end: checksums, tars, index, images, counts, groups."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from dfdet.schema import FAKE, REAL, FileEntry, Manifest, Sample, index_schema
from shards.sets.manifest import read_manifest, tar_path

MAX_PROBLEMS = 20
"""Problems listed of one file; a shifted tar has as many as samples."""
_SAME_IN_INDEX = ("label", "group", "group_level", "identity", "video", "frame")


def verify_set(path: Path) -> list[str]:
    """Problems of a shard set, one line each; none means that the set is sound.

    Args:
        path: Manifest of the set.

    Raises:
        ShardSetError: The path is no manifest.
    """
    manifest = read_manifest(path)
    folder = Path(path).parent
    problems = [f"{Path(path).name}: the set is named {manifest.name!r}"] * (Path(path).stem != manifest.name)
    problems += _stale(folder, manifest)
    problems += _file_problems(folder / manifest.index.file, manifest.index)
    try:
        table = pq.read_table(folder / manifest.index.file)
    except (OSError, ValueError) as error:  # Arrow's errors are among these.
        return [*problems, f"{manifest.index.file}: cannot be read ({error}); tars were not checked"]
    if not table.schema.equals(index_schema()):
        return [*problems, f"{manifest.index.file}: is no index of format 1; tars were not checked"]
    problems += _index_problems(table, manifest)
    for number, entry in enumerate(manifest.shards):
        rows = table.filter(pc.equal(table["shard"], number)).to_pylist()
        place = tar_path(folder, entry)
        problems += _file_problems(place, entry)
        if place.is_file():
            found = _image_problems(place, rows) if entry.url else _tar_problems(place, rows, manifest)
            problems += _capped(entry.file, found)
    return problems


def _stale(folder: Path, manifest: Manifest) -> list[str]:
    pattern = re.compile(re.escape(manifest.name) + r"-\d{6,}\.tar")
    known = {entry.file for entry in manifest.shards}
    found = sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name))
    return [f"{name}: is not in the manifest" for name in found if name not in known]


def _file_problems(path: Path, entry: FileEntry) -> list[str]:
    if not path.is_file():
        return [f"{entry.file}: is missing"]
    if (size := path.stat().st_size) != entry.bytes:
        return [f"{entry.file}: has {size} bytes, not {entry.bytes}"]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return [f"{entry.file}: sha256 is {sha256}, not {entry.sha256}"] * (sha256 != entry.sha256)


def _index_problems(table: pa.Table, manifest: Manifest) -> list[str]:
    file = manifest.index.file
    labels = Counter(table["label"].to_pylist())
    facts: dict[str, tuple[Any, Any]] = {
        "samples": (table.num_rows, manifest.samples),
        "by_label": ({"real": labels[REAL], "fake": labels[FAKE]}, manifest.by_label),
        "by_method": (dict(Counter(table["method"].to_pylist())), manifest.by_method),
        "samples by shard": (
            dict(Counter(table["shard"].to_pylist())),
            {number: entry.samples for number, entry in enumerate(manifest.shards)},
        ),
    }
    problems = [
        f"{file}: {name} is {found}, in the manifest {told}"
        for name, (found, told) in facts.items()
        if found != told
    ]
    twice = [key for key, count in Counter(table["key"].to_pylist()).items() if count > 1]
    problems += _capped(file, (f"{file}: key {key!r} occurs twice" for key in twice))
    shards: dict[str, set[int]] = {}
    for group, shard in zip(table["group"].to_pylist(), table["shard"].to_pylist(), strict=True):
        if group is not None:
            shards.setdefault(group, set()).add(shard)
    foreign = any(entry.url for entry in manifest.shards)
    spread = (
        f"{file}: group {group!r} lies in shards {sorted(where)}"
        for group, where in shards.items()
        if len(where) > 1 and not foreign
    )
    return problems + _capped(file, spread)


def _image_problems(path: Path, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Of a foreign tar, whose members may stand in any order: its images, at their offsets."""
    with path.open("rb") as file:
        for row in rows:
            file.seek(row["offset"])
            if zlib.crc32(file.read(row["size"])) != row["crc32"]:
                yield f"{path.name}: sample {row['key']!r}: its image fails its checksum"


def _tar_problems(path: Path, rows: list[dict[str, Any]], manifest: Manifest) -> Iterator[str]:
    if not _ends_in_zero_blocks(path):
        yield f"{path.name}: does not end in two zero blocks: it was cut off"
    by_key = {row["key"]: row for row in rows}
    seen = []
    try:
        with tarfile.open(path, "r:") as tar:
            for key, image, text in _pairs(tar):
                seen.append(key)
                if key not in by_key:
                    yield f"{path.name}: sample {key!r} is not in the index"
                    continue
                yield from _sample_problems(path.name, tar, image, text, by_key[key], manifest)
    except (tarfile.TarError, OSError, ValueError) as error:
        yield f"{path.name}: cannot be read to its end ({error})"
    lacking = [row["key"] for row in rows if row["key"] not in set(seen)]
    yield from (f"{path.name}: sample {key!r} of the index is not in the tar" for key in lacking)
    if not lacking and seen != [row["key"] for row in rows]:
        yield f"{path.name}: its samples stand in another order than in the index"


def _ends_in_zero_blocks(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return size % tarfile.BLOCKSIZE == 0 and file.read() == bytes(2 * tarfile.BLOCKSIZE)


def _pairs(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarInfo]]:
    """Key, image member and JSON member of each sample."""
    members = iter(tar)
    for image in members:
        text = next(members, None)
        key = image.name.rpartition(".")[0]
        if text is None or text.name != f"{key}.json":
            raise ValueError(f"member {image.name!r} is not followed by its JSON")
        yield key, image, text


def _sample_problems(
    file: str,
    tar: tarfile.TarFile,
    image: tarfile.TarInfo,
    text: tarfile.TarInfo,
    row: dict[str, Any],
    manifest: Manifest,
) -> Iterator[str]:
    where = f"{file}: sample {row['key']!r}"
    data = _payload(tar, image)
    found = {
        "ext": image.name.rpartition(".")[2],
        "offset": image.offset_data,
        "size": len(data),
        "crc32": zlib.crc32(data),
    }
    for name, value in found.items():
        if value != row[name]:
            yield f"{where}: {name} is {value}, in the index {row[name]}"
    try:
        sample = Sample.model_validate_json(_payload(tar, text))
    except ValidationError as error:
        yield f"{where}: its JSON is no sample ({error.errors(include_url=False)[0]['msg']})"
    else:
        yield from _json_problems(where, sample, row, manifest)
    try:
        with Image.open(io.BytesIO(data)) as decoded:
            decoded.load()
    except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything in decoders.
        yield f"{where}: the image does not decode ({error})"
        return
    if decoded.size != (row["width"], row["height"]):
        width, height = decoded.size
        yield f"{where}: the image is {width}x{height}, in the index {row['width']}x{row['height']}"


def _json_problems(where: str, sample: Sample, row: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    facts = {name: (getattr(sample, name), row[name]) for name in _SAME_IN_INDEX}
    facts |= {"key": (sample.key, row["key"]), "source": (sample.source, row["method"])}
    for name, (told, indexed) in facts.items():
        if told != indexed:
            yield f"{where}: {name} is {told!r} in its JSON, {indexed!r} in the index"
    if sample.crop != manifest.crop or sample.dataset != manifest.dataset:
        yield f"{where}: crop recipe or dataset is not that of the manifest"
    if manifest.split not in (sample.split, "all"):
        yield f"{where}: split is {sample.split!r}, in the manifest {manifest.split!r}"


def _payload(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"member {member.name!r} is no plain file")
    return file.read()


def _capped(file: str, problems: Iterator[str]) -> list[str]:
    listed = list(problems)
    more = len(listed) - MAX_PROBLEMS
    return listed[:MAX_PROBLEMS] + [f"{file}: and {more} problems more"] * (more > 0)
