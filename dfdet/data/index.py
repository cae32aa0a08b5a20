"""Opens shard sets: manifests checked, indexes joined into plain columns, nothing decoded.

Everything that can be wrong with a set short of its image bytes is said here, before a run starts.
Image bytes are checked on each read (:mod:`dfdet.data.reader`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfdet.config import Data
from dfdet.data.cache import GIB, Cache
from dfdet.data.files import BUILD, SetFiles
from dfdet.data.remote import Remote, is_url
from dfdet.errors import ConfigError, ShardSetError
from dfdet.schema import MAX_CRF, CropRecipe, Failure, Manifest, index_schema

_RECOMPRESSED = rf"^([^/]+)-(?:{'|'.join(MAX_CRF)})-crf[0-9]+/"
"""Head of a key of a re-compressed dataset (``dfdet.schema.Recompression``) and its base."""
_NULLABLE = {"group", "identity"}
_KEY = r"^[A-Za-z0-9_+%-]+(/[A-Za-z0-9_+%-]+){2}/[0-9]+$"


@dataclass(frozen=True, eq=False)
class Index:
    """One or several shard sets as columns; a row is a sample and its number the sample id."""

    shards: tuple[Path | Remote, ...]
    """Tars, local or behind URLs; ``shard`` points into this."""
    shard: NDArray[np.int32]
    """Number of the tar, [n]."""
    offset: NDArray[np.int64]
    """First byte of the image in its tar (bytes), [n]."""
    size: NDArray[np.int32]
    """Length of the image (bytes), [n]."""
    crc32: NDArray[np.uint32]
    """zlib.crc32 of the image, [n]."""
    label: NDArray[np.int8]
    """0 real, 1 fake, [n]."""
    method: NDArray[np.int16]
    """Index into ``methods``, [n]."""
    group: NDArray[np.int32]
    """Code of the real video behind the sample, shared over the sets; -1 unknown, [n]."""
    group_exact: NDArray[np.bool_]
    """Whether the group is known exactly: only then are pairs formed, [n]."""
    cluster: NDArray[np.int32]
    """Bootstrap cluster, index into ``clusters``, [n]."""
    video: NDArray[np.int32]
    """Index into ``videos``, [n]."""
    frame: NDArray[np.int32]
    """Frame in the video, [n]."""
    width: NDArray[np.int32]
    """Width of the stored image (pixels), [n]."""
    height: NDArray[np.int32]
    """Height of the stored image (pixels), [n]."""
    shard_scale: NDArray[np.float64]
    """Stored crop scale of each tar's set, NaN where unknown, [shards]."""
    methods: tuple[str, ...]
    """Names of the methods, ``real`` among them."""
    videos: tuple[str, ...]
    """``<dataset>/<source>/<video>``: keys without their frame."""
    clusters: tuple[str, ...]
    """Names of identities, else groups, else videos: equal in all sets that share one."""
    exts: tuple[str, ...]
    """Image extensions that occur."""
    crop: CropRecipe
    """Recipe of all sets; the unknown recipe where sets were mixed."""
    digest: str
    """SHA-256 over the checksums of the sets' indexes, in order (hex)."""
    failures: tuple[Failure, ...]
    """Videos without usable faces."""
    key_column: pa.ChunkedArray
    """Sample keys."""
    cache: Cache
    """Where remote tars are copied."""

    def __len__(self) -> int:
        return len(self.label)

    def keys(self, ids: NDArray[Any] | Sequence[int]) -> list[str]:
        """Sample keys of sample ids."""
        return self.key_column.take(pa.array(np.asarray(ids, np.int64))).to_pylist()


def open_sets(
    manifests: Sequence[str | Path], *, mix_crops: bool = False, cache: Cache | None = None
) -> Index:
    """Opens shard sets and joins them in the given order.

    Remote manifests are read anew, remote indexes from the cache; remote tars are not looked at.

    Args:
        manifests: Paths or URLs of the sets' ``<name>.json``.
        mix_crops: Allow sets of different crop recipes.
        cache: Where remote files are copied; None: as :func:`make_cache` of the default config.

    Raises:
        ShardSetError: A set is missing, unfinished, damaged, of another index, of another crop
            recipe, or holds a key that an earlier one holds.
        StorageError: A remote file cannot be fetched.
    """
    if not manifests:
        raise ShardSetError("no shard set given; name manifests, as --data.train SET.json")
    cache = cache or make_cache(Data())
    sets = [SetFiles(path, cache) for path in manifests]
    loaded = [files.read_manifest() for files in sets]
    crop = _common_crop(sets, loaded, mix_crops)
    tables: list[pa.Table] = []
    shards: list[Path | Remote] = []
    for files, manifest in zip(sets, loaded, strict=True):
        first = len(shards)
        shards += files.shards(manifest)
        tables.append(_checked_table(files, manifest, first))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    _refuse_repeats(table["key"], sets)
    return _join(table, shards, loaded, crop, cache)


def make_cache(data: Data) -> Cache:
    """The cache that a config asks for; no folder is made yet.

    Raises:
        ConfigError: ``data.cache_dir`` is a URL.
    """
    if is_url(data.cache_dir):
        raise ConfigError(
            f"data.cache_dir={data.cache_dir}: not a local folder; give one on this node's disk"
        )
    return Cache(Path(data.cache_dir).expanduser().absolute(), int(data.cache_gib * GIB), data.retries)


def _common_crop(sets: Sequence[SetFiles], manifests: Sequence[Manifest], mix_crops: bool) -> CropRecipe:
    first = manifests[0].crop
    for files, manifest in zip(sets, manifests, strict=True):
        if manifest.crop == first:
            continue
        if mix_crops:
            return CropRecipe()
        fields = [
            f"{name} {theirs!r} against {ours!r}"
            for name, theirs in manifest.crop.model_dump().items()
            if theirs != (ours := getattr(first, name))
        ]
        raise ShardSetError(
            f"{files}: cropped otherwise than {sets[0]} ({', '.join(fields)}); crop both alike,"
            " or allow it with --data.mix_crops True"
        )
    return first


def _checked_table(files: SetFiles, manifest: Manifest, first_shard: int) -> pa.Table:
    """The set's index, checked against its manifest; shard numbers start at ``first_shard``."""
    table = _read_table(files, manifest)
    _check_rows(files.beside(manifest.index.file), manifest, table)
    shard = pc.add(table["shard"], pa.scalar(first_shard, pa.int32()))
    return table.set_column(table.schema.get_field_index("shard"), "shard", shard)


def _read_table(files: SetFiles, manifest: Manifest) -> pa.Table:
    data, file = files.read_index(manifest), files.beside(manifest.index.file)
    if hashlib.sha256(data).hexdigest() != manifest.index.sha256:
        raise ShardSetError(
            f"{file}: index of other data: its SHA-256 is not the one in {files.name};"
            f" copy index, tars and manifest of one set, or {BUILD} again"
        )
    try:
        table = pq.read_table(io.BytesIO(data))
        return table.select(index_schema().names).cast(index_schema())
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ShardSetError(
            f"{file}: not an index of format {manifest.format_version} ({error}); {BUILD} again"
        ) from error


def _check_rows(file: str, manifest: Manifest, table: pa.Table) -> None:
    """Rows must fit the manifest: a wrong one would read other bytes or train on a wrong label."""
    columns = {name: table[name].to_numpy() for name in ("shard", "offset", "size", "label", "frame")}
    shard, end = columns["shard"], columns["offset"] + columns["size"].astype(np.int64)
    bounds = np.array([entry.bytes for entry in manifest.shards])
    counts = np.array([entry.samples for entry in manifest.shards])
    nulls = [name for name in table.column_names if name not in _NULLABLE and table[name].null_count]
    if nulls:
        problem = f"column {nulls[0]} has empty values"
    elif len(shard) != manifest.samples:
        problem = f"{len(shard)} rows, but the manifest says {manifest.samples} samples"
    elif shard.min() < 0 or shard.max() >= len(bounds):
        problem = f"shard numbers {shard.min()} to {shard.max()}, but {len(bounds)} tars"
    elif (np.bincount(shard, minlength=len(counts)) != counts).any():
        problem = "samples by tar are not those of the manifest"
    elif (columns["offset"] < 0).any() or (columns["size"] <= 0).any() or (end > bounds[shard]).any():
        problem = "an image lies outside its tar"
    elif not np.isin(columns["label"], (0, 1)).all():
        problem = "labels other than 0 and 1"
    elif (columns["frame"] < 0).any() or not pc.all(pc.match_substring_regex(table["key"], _KEY)).as_py():
        problem = "keys that are not <dataset>/<source>/<video>/<frame>"
    else:
        return
    raise ShardSetError(f"{file}: {problem}; {BUILD} again")


def _refuse_repeats(keys: pa.ChunkedArray, sets: Sequence[SetFiles]) -> None:
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    raise ShardSetError(
        f"{', '.join(map(str, sets))}: {len(repeated)} sample keys occur twice, as {repeated[0].as_py()!r};"
        " name each set once, and sets that do not overlap"
    )


def _join(
    table: pa.Table,
    shards: Sequence[Path | Remote],
    manifests: Sequence[Manifest],
    crop: CropRecipe,
    cache: Cache,
) -> Index:
    stored = [m.crop.scale if m.crop.scale is not None else np.nan for m in manifests for _ in m.shards]
    video, videos = _codes(pc.replace_substring_regex(table["key"], "/[0-9]+$", ""))
    method, methods = _codes(table["method"])
    cluster, clusters = _codes(_cluster_names(table))
    digest = hashlib.sha256("\n".join(m.index.sha256 for m in manifests).encode()).hexdigest()
    plain = ("shard", "offset", "size", "crc32", "label", "frame", "width", "height")
    return Index(
        **{name: table[name].to_numpy() for name in plain},
        shards=tuple(shards),
        method=method.astype(np.int16),
        group=_codes(table["group"])[0],
        group_exact=_is_exact(table),
        cluster=cluster,
        video=video,
        shard_scale=np.array(stored, np.float64),
        methods=methods,
        videos=videos,
        clusters=clusters,
        exts=tuple(sorted(set(_codes(table["ext"])[1]))),
        crop=crop,
        digest=digest,
        failures=tuple(failure for m in manifests for failure in m.failures),
        key_column=table["key"],
        cache=cache,
    )


def failure_clusters(failures: Sequence[Failure]) -> list[str]:
    """Names of the clusters that videos without faces lie in, by the rule of ``Index.clusters``."""
    text = pa.string()
    columns = {
        "key": pa.chunked_array([[f"{failure.video}/0" for failure in failures]], text),
        "group": pa.chunked_array([[failure.group for failure in failures]], text),
        "identity": pa.chunked_array([[failure.identity for failure in failures]], text),
    }
    return _cluster_names(pa.table(columns)).to_pylist()


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Integer codes in the sorted order of the values (-1 for null) and the values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    values = pc.unique(column.drop_null()).sort()
    codes = pc.fill_null(pc.index_in(column, value_set=values), -1)
    return codes.to_numpy().astype(np.int32), tuple(values.to_pylist())


def _is_exact(table: pa.Table) -> NDArray[np.bool_]:
    exact = pc.equal(table["group_level"].cast(pa.string()), "exact")
    return pc.and_(exact, pc.is_valid(table["group"])).to_numpy()


def _cluster_names(table: pa.Table) -> pa.ChunkedArray:
    """``identity/<scope>/<identity>``, else ``group/<group>``, else ``video/<video>``.

    An identity counts within its dataset family (the head of the group) or else its dataset, since
    ``id0`` of two datasets is two persons. A re-compressed dataset has the names of its base, so that both
    are resampled together.
    """
    key = pc.replace_substring_regex(table["key"], _RECOMPRESSED, r"\1/")
    group, identity = (table[name].cast(pa.string()) for name in ("group", "identity"))
    family, dataset = (
        pc.struct_field(pc.extract_regex(text, "^(?P<head>[^/]+)/"), 0) for text in (group, key)
    )
    video = pc.replace_substring_regex(key, "/[0-9]+$", "")

    def joined(*parts: pa.ChunkedArray | str) -> pa.ChunkedArray:
        return pc.binary_join_element_wise(*parts, "/")  # null where a part is

    person = joined("identity", pc.coalesce(family, dataset), identity)
    return pc.coalesce(person, joined("group", group), joined("video", video))
