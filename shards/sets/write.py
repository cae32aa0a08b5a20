"""Writes shard sets: plain WebDataset tars, a Parquet index with true byte offsets, a manifest.

Equal input gives equal bytes. Everything is written in a hidden folder beside the set, synced to
disk and renamed, the manifest last, so whatever has a manifest is complete.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dfdet.errors import ShardSetError
from dfdet.schema import (
    IMAGE_EXTENSIONS,
    CropRecipe,
    Failure,
    Manifest,
    Sample,
    ShardEntry,
    Shortfall,
    Split,
    index_schema,
)
from shards.sets.files import TemporaryFolder, link_or_copy, sync_folder, write_synced
from shards.sets.manifest import check_no_leak, read_manifest
from shards.sets.tar import Member, TarFile, closed_bytes, make_member

__all__ = ["Item", "ShardWriter", "check_no_leak", "publish"]

Item = tuple[Sample, str, bytes, int, int]
"""Sample, image extension, image bytes, width and height (pixels)."""


class ShardWriter:
    """Writes one shard set; a context manager that publishes the set on leaving.

    An exception inside leaves no trace, and a finished set of the same name stays as it was until
    the new one is complete. One process at a time writes a set.

    Args:
        folder: Where the set lies; made if missing.
        name: Name of the set: files are ``<name>-NNNNNN.tar``, ``<name>.parquet``, ``<name>.json``.
        dataset: Dataset and variant; all samples are of it.
        split: Split of all samples, or ``all`` for a set that mixes them.
        crop: Crop recipe of all samples.
        max_shard_bytes: Size of a tar; only a single group larger than that exceeds it.
        written_by: Program, version and arguments that make the set again.
        failures: Videos without usable faces; more can be added by :meth:`add_failure`.
        missing: What the dataset's lists name and the disk lacks.
        plan_sha256: Fingerprint of inputs and options, by which a finished set is known again.

    Raises:
        ShardSetError: The name or the folder cannot be used, or another process writes the set.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        dataset: str,
        split: Split,
        crop: CropRecipe,
        max_shard_bytes: int = 64 << 20,
        written_by: str = "",
        failures: Iterable[Failure] = (),
        missing: Iterable[str] = (),
        plan_sha256: str = "",
    ) -> None:
        self.folder, self.name = Path(folder), _checked_name(name)
        self.dataset, self.split, self.crop = dataset, split, crop
        self.max_shard_bytes = max_shard_bytes
        self._written_by = written_by
        self._failures = list(failures)
        self._shortfalls: list[Shortfall] = []
        self._missing, self._plan_sha256 = tuple(missing), plan_sha256
        self._keys: set[str] = set()
        self._groups: set[str] = set()
        self._columns: dict[str, list[Any]] = {field.name: [] for field in index_schema()}
        self._shards: list[ShardEntry] = []
        self._tar: TarFile | None = None
        self._temporary: TemporaryFolder | None = None
        self._manifest: Manifest | None = None
        self._cancelled = False

    def __enter__(self) -> Self:
        self._temporary = TemporaryFolder(self.folder, self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._manifest is None and not self._cancelled:
                publish([self])
        finally:
            if self._tar is not None:
                self._tar.abandon()
            if self._temporary is not None:
                self._temporary.remove()

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest, which exists once the set is published."""
        return self.folder / f"{self.name}.json"

    @property
    def manifest(self) -> Manifest:
        """Manifest of the published set."""
        assert self._manifest is not None, "the manifest exists once the writer is closed"
        return self._manifest

    def add_failure(self, failure: Failure) -> None:
        """Records a video without usable faces."""
        self._failures.append(failure)

    def add_shortfall(self, shortfall: Shortfall) -> None:
        """Records a video that gave fewer faces than frames were asked of it."""
        self._shortfalls.append(shortfall)

    def add_group(self, samples: Iterable[Item]) -> None:
        """Adds all samples of one group, which will lie in one tar.

        A group of None (the dataset does not tell) may come in any number of calls, each of which
        is kept together. Nothing is written if any sample is refused.

        Args:
            samples: Sample, image extension, image bytes, width and height (pixels) of each.

        Raises:
            ShardSetError: A duplicate key, a group that was already added, more than one group, a
                sample of another dataset, split or crop recipe, an unknown extension, no image.
        """
        items = list(samples)
        self._check(items)
        members = [_members(sample, ext, image) for sample, ext, image, *_ in items]
        tar = self._tar_with_room(sum(member.bytes_in_tar for pair in members for member in pair))
        for item, (image_member, text_member) in zip(items, members, strict=True):
            self._add_row(item, tar.add(image_member))
            tar.add(text_member)
            tar.samples += 1

    def cancel(self) -> None:
        """Publishes nothing on leaving."""
        self._cancelled = True

    def adopt(self, part: Path) -> None:
        """Takes over the tars, rows, failures and shortfalls of a finished set, which stays as it is.

        Args:
            part: Manifest of a set of the same dataset, split and crop recipe.

        Raises:
            ShardSetError: The set is unfinished or of another kind, or holds a key or group twice.
        """
        assert self._temporary is not None, "use the writer in a with statement"
        manifest = read_manifest(part)
        if (manifest.dataset, manifest.split, manifest.crop) != (self.dataset, self.split, self.crop):
            raise ShardSetError(f"{self._where}: {part} is of another dataset, split or crop recipe")
        table = pq.read_table(part.parent / manifest.index.file, schema=index_schema())
        columns = table.to_pydict()
        self._note(Counter(columns["key"]), set(columns["group"]))
        self._close_tar()
        columns["shard"] = [number + len(self._shards) for number in columns["shard"]]
        for name, column in self._columns.items():
            column += columns[name]
        for entry in manifest.shards:
            name = f"{self.name}-{len(self._shards):06d}.tar"
            link_or_copy(part.parent / entry.file, self._temporary.path / name)
            self._shards.append(entry.model_copy(update={"file": name}))
        self._failures += manifest.failures
        self._shortfalls += manifest.shortfalls

    def _check(self, items: Sequence[Item]) -> None:
        keys, groups = Counter(item[0].key for item in items), {item[0].group for item in items}
        for item in items:
            if problem := self._problem(*item):
                raise ShardSetError(f"{self._where}: sample {item[0].key!r} {problem}")
        if len(groups) > 1:
            names = sorted(map(str, groups))[:3]
            raise ShardSetError(f"{self._where}: one call holds groups {names}; add each group by itself")
        self._note(keys, groups)

    def _note(self, keys: Counter[str], groups: set[str | None]) -> None:
        """Remembers new keys and groups; refuses those that are there already."""
        twice = [key for key, count in keys.items() if count > 1 or key in self._keys]
        if twice:
            raise ShardSetError(f"{self._where}: key {twice[0]!r} occurs twice; give each frame its own key")
        if again := (groups & self._groups):
            raise ShardSetError(
                f"{self._where}: group {again.pop()!r} was already added and would lie in two shards; "
                "add all samples of a group in one call"
            )
        self._keys.update(keys)
        self._groups.update(group for group in groups if group is not None)

    def _problem(self, sample: Sample, ext: str, image: bytes, width: int, height: int) -> str | None:
        if sample.dataset != self.dataset:
            return f"is not of {self.dataset!r}; write one set a dataset"
        if self.split not in (sample.split, "all"):
            return f"has split {sample.split!r}, not {self.split!r}; write one set a split"
        if sample.crop != self.crop:
            return f"was cut by {sample.crop!r}, not {self.crop!r}; write one set a crop recipe"
        if ext not in IMAGE_EXTENSIONS:
            return f"has extension {ext!r}; known are {', '.join(IMAGE_EXTENSIONS)}, without a dot"
        if not image or width < 1 or height < 1:
            return f"has {len(image)} bytes and {width}x{height} px; leave out empty images"
        return None

    def _tar_with_room(self, size: int) -> TarFile:
        tar = self._tar
        if tar and tar.samples and closed_bytes(tar.bytes + size) > self.max_shard_bytes:
            self._close_tar()
        if self._tar is None:
            assert self._temporary is not None, "use the writer in a with statement"
            self._tar = TarFile(self._temporary.path / f"{self.name}-{len(self._shards):06d}.tar")
        return self._tar

    def _close_tar(self) -> None:
        if self._tar is not None and self._tar.samples:
            self._shards.append(self._tar.close())
            self._tar = None

    def _add_row(self, item: Item, offset: int) -> None:
        sample, ext, image, width, height = item
        row = {
            "ext": ext,
            "shard": len(self._shards),
            "offset": offset,
            "size": len(image),
            "crc32": zlib.crc32(image),
            "method": sample.source,
            "width": width,
            "height": height,
        }
        for name, column in self._columns.items():
            column.append(row[name] if name in row else getattr(sample, name))

    def _prepare(self) -> None:
        """Completes all files under temporary names."""
        assert self._temporary is not None, "use the writer in a with statement"
        if not self._keys:
            reasons = Counter(failure.reason for failure in self._failures).most_common(3)
            seen = f" ({len(self._failures)} failed, most often: {reasons})" if reasons else ""
            raise ShardSetError(f"{self._where}: no sample was added{seen}; add some, or leave out the set")
        self._close_tar()
        buffer = io.BytesIO()
        pq.write_table(pa.table(self._columns, schema=index_schema()), buffer, compression="zstd")
        labels, methods = Counter(self._columns["label"]), Counter(self._columns["method"])
        self._manifest = Manifest(
            name=self.name,
            dataset=self.dataset,
            split=self.split,
            index=write_synced(self._temporary.path / f"{self.name}.parquet", buffer.getvalue()),
            shards=tuple(self._shards),
            samples=len(self._keys),
            by_label={"real": labels[0], "fake": labels[1]},
            by_method=dict(sorted(methods.items())),
            crop=self.crop,
            failures=tuple(self._failures),
            shortfalls=tuple(self._shortfalls),
            missing=self._missing,
            plan_sha256=self._plan_sha256,
            written_by=self._written_by,
        )
        text = self._manifest.model_dump_json(indent=2) + "\n"
        write_synced(self._temporary.path / self.manifest_path.name, text.encode())

    def _move_data(self) -> None:
        assert self._temporary is not None
        entries = (*self.manifest.shards, self.manifest.index)
        for entry in entries:
            (self._temporary.path / entry.file).replace(self.folder / entry.file)
        _remove_shards(self.folder, self.name, keep={entry.file for entry in entries})
        sync_folder(self.folder)

    def _move_manifest(self) -> None:
        assert self._temporary is not None
        (self._temporary.path / self.manifest_path.name).replace(self.manifest_path)
        sync_folder(self.folder)

    @property
    def _where(self) -> str:
        return f"shard set {self.name!r} in {self.folder}"


def publish(writers: Sequence[ShardWriter], *, withdraw: Iterable[Path] = ()) -> None:
    """Publishes sets that belong together (as train, val and test), so that old and new never mix.

    Old sets stay until all new files are complete on disk. Then all old manifests go before the
    first file moves, and new manifests come last: a kill in between leaves unfinished sets, never
    a wrong one.

    Args:
        writers: Open writers; leaving their ``with`` then only cleans up.
        withdraw: Manifests of sets to remove, as those of a former division into splits.

    Raises:
        ShardSetError: A set is empty.
    """
    gone = [Path(path) for path in withdraw if Path(path).exists()]
    for writer in writers:
        writer._prepare()
    for path in (*(writer.manifest_path for writer in writers), *gone):
        path.unlink(missing_ok=True)
    for folder in {*(writer.folder for writer in writers), *(path.parent for path in gone)}:
        sync_folder(folder)
    for path in gone:
        path.with_suffix(".parquet").unlink(missing_ok=True)
        _remove_shards(path.parent, path.stem)
    for writer in writers:
        writer._move_data()
    for writer in writers:
        writer._move_manifest()


def _checked_name(name: str) -> str:
    if not name or not name.isprintable() or name != Path(name).name or name.startswith(".") or "\\" in name:
        raise ShardSetError(f"set name {name!r} must be a plain file name without a leading dot; rename it")
    return name


def _members(sample: Sample, ext: str, image: bytes) -> tuple[Member, Member]:
    text = sample.model_dump_json().encode()
    return make_member(f"{sample.key}.{ext}", image), make_member(f"{sample.key}.json", text)


def _remove_shards(folder: Path, name: str, keep: Iterable[str] = ()) -> None:
    pattern = re.compile(re.escape(name) + r"-\d{6,}\.tar")
    for path in sorted(folder.iterdir()):
        if pattern.fullmatch(path.name) and path.name not in keep:
            path.unlink()
