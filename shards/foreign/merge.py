"""Puts the scans of several tars together: our keys, the rows of the index, the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dfdet.errors import InputError, ShardSetError
from dfdet.schema import (
    FAKE,
    REAL,
    CropRecipe,
    Failure,
    FileEntry,
    Manifest,
    ShardEntry,
    Shortfall,
    Split,
    index_schema,
    make_key,
)
from shards.foreign.locations import Location
from shards.foreign.scan import Found, Scan, Unusable


class Merged:
    """The set in the making; scans are added in the order of the tars.

    A sample's key is ``<dataset>/<method>/<video>/<frame>``; where the JSON names no video, the video
    is the sample's key in its tar and the frame 0; where it names no frame, frames of a video are
    numbered as they come.

    Args:
        dataset: Name of the dataset whatever the JSON says; None to believe the JSON.
        name: Name of the set, and of its dataset where nothing else tells.
        by_tar: Whether the tar's name stands before keys that become videos.
    """

    def __init__(self, *, dataset: str | None, name: str, by_tar: bool) -> None:
        self.unusable: list[str] = []
        """Samples left out, each with its reason, for people."""
        self.ignored: Counter[str] = Counter()
        """Members passed over, by extension or kind."""
        self._dataset, self._name, self._by_tar = dataset, name, by_tar
        self._scans: list[tuple[Location, int, str, int]] = []
        self._tables: list[pa.Table] = []
        self._failed: list[tuple[str | None, Unusable]] = []
        self._next_frame: Counter[tuple[str, str]] = Counter()
        self._datasets: set[str] = set()
        self._splits: set[Split] = set()
        self._crops: set[CropRecipe | None] = set()

    def add(self, scan: Scan) -> None:
        """Takes the samples of a tar; one without usable samples becomes no shard."""
        rows = [self._row(sample, scan.location) for sample in scan.found]
        self.ignored += scan.ignored
        for sample in scan.unusable:
            self._failed.append((self._video_of(sample, scan.location), sample))
            self.unusable.append(f"{scan.location.name}: sample {sample.key!r} {sample.reason}")
        if rows:
            self._tables.append(pa.Table.from_pylist(rows, schema=index_schema()))
            self._scans.append((scan.location, scan.bytes, scan.sha256, len(rows)))

    def table(self, folder: Path) -> pa.Table:
        """The index.

        Raises:
            ShardSetError: There is no sample, or two have one key.
        """
        if not self._tables:
            seen = f": {'; '.join(self.unusable[:3])}" if self.unusable else ""
            raise ShardSetError(f"no sample can be used for a set in {folder}{seen}; give other tars")
        table = pa.concat_tables(self._tables).unify_dictionaries().combine_chunks()
        counts = pc.value_counts(table["key"])
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            raise ShardSetError(
                f"{len(repeated)} keys occur twice, as {repeated[0].as_py()!r}; name each tar once, or, where"
                " tars number their samples alike, give --by_tar"
            )
        return table

    def manifest(
        self,
        index: FileEntry,
        table: pa.Table,
        folder: Path,
        *,
        split: Split | None,
        scale: float | None,
        left_out: Sequence[str],
    ) -> Manifest:
        """The manifest of a set in a folder.

        Raises:
            InputError: The samples are of several datasets, of another split, or cut in several ways.
        """
        labels = Counter(table["label"].to_pylist())
        methods = pc.value_counts(table["method"].cast(pa.string())).to_pylist()
        failures, shortfalls, unlabelled = self._losses(table)
        return Manifest(
            name=self._name,
            dataset=self._one_dataset(),
            split=self._one_split(split),
            index=index,
            shards=tuple(self._entries(folder)),
            samples=table.num_rows,
            by_label={"real": labels[REAL], "fake": labels[FAKE]},
            by_method=dict(sorted((each["values"], each["counts"]) for each in methods)),
            crop=self._one_crop(scale, table),
            failures=tuple(failures),
            shortfalls=tuple(shortfalls),
            missing=(*unlabelled, *left_out),
        )

    def _row(self, sample: Found, location: Location) -> dict[str, Any]:
        told, dataset = sample.told, self._dataset_of(sample)
        video, frame = self._place(sample, location)
        self._datasets.add(dataset)
        self._splits.add(told.split)
        self._crops.add(told.crop)
        return {
            "key": make_key(dataset, sample.method, video, frame),
            "shard": len(self._scans),
            "label": sample.label,
            "method": sample.method,
            "video": video,
            "frame": frame,
            **self._known(sample),
            **sample.picture._asdict(),
        }

    def _known(self, sample: Found | Unusable) -> dict[str, Any]:
        """Which real video and person a sample goes back to."""
        told, group = sample.told, sample.told.group
        if group is not None and "/" not in group:
            group = f"{self._dataset_of(sample)}/{group}"
        return {"group": group, "group_level": told.group_level, "identity": told.identity}

    def _dataset_of(self, sample: Found | Unusable) -> str:
        return self._dataset or sample.told.dataset or self._name

    def _place(self, sample: Found, location: Location) -> tuple[str, int]:
        told = sample.told
        if told.video is None:
            return self._foreign_name(sample.key, location), told.frame or 0
        if told.frame is not None:
            return told.video, told.frame
        number = self._next_frame[sample.method, told.video]
        self._next_frame[sample.method, told.video] += 1
        return told.video, number

    def _foreign_name(self, key: str, location: Location) -> str:
        name = key.removeprefix("./")
        return f"{location.name.partition('.')[0]}/{name}" if self._by_tar else name

    def _video_of(self, sample: Unusable, location: Location) -> str | None:
        """``<dataset>/<method>/<video>`` of a sample left out, if its label is known."""
        if sample.method is None:
            return None
        video = sample.told.video or self._foreign_name(sample.key, location)
        return make_key(self._dataset_of(sample), sample.method, video, 0).rpartition("/")[0]

    def _losses(self, table: pa.Table) -> tuple[list[Failure], list[Shortfall], list[str]]:
        """Videos without any sample left, videos that lost some, and samples without a label."""
        lost = Counter(video for video, _ in self._failed if video is not None)
        videos = pc.replace_substring_regex(table["key"], "/[0-9]+$", "")
        kept = Counter(videos.filter(pc.is_in(videos, pa.array(list(lost), pa.string()))).to_pylist())
        failures, shortfalls, unlabelled, seen = list[Failure](), list[Shortfall](), list[str](), set[str]()
        for line, (video, sample) in zip(self.unusable, self._failed, strict=True):
            if video is None or sample.label is None:
                unlabelled.append(line)
            elif video not in seen and not kept[video]:
                known = self._known(sample)
                failures.append(Failure(video=video, label=sample.label, reason=sample.reason, **known))
            elif video not in seen:
                n = kept[video]
                facts = {"asked": n + lost[video], "read": n, "faces": n, "reason": sample.reason}
                shortfalls.append(Shortfall(video=video, label=sample.label, **facts))
            seen.add(video or "")
        return failures, shortfalls, unlabelled

    def _entries(self, folder: Path) -> list[ShardEntry]:
        """Tars by plain unique names: their own beside the manifest, others numbered where names meet."""
        beside = {tar.name for tar, *_ in self._scans if _is_beside(tar, folder)}
        taken, entries = set(beside), []
        for number, (tar, size, sha256, samples) in enumerate(self._scans):
            file, url = tar.name, None
            if not _is_beside(tar, folder):
                file = f"{number:06d}-{tar.name}" if tar.name in taken or "\\" in tar.name else tar.name
                file = file.replace("\\", "_")
                taken.add(file)
                url = tar.url
            entries.append(ShardEntry(file=file, url=url, bytes=size, sha256=sha256, samples=samples))
        return entries

    def _one_dataset(self) -> str:
        if len(self._datasets) > 1:
            raise InputError(
                f"samples are of several datasets ({', '.join(sorted(self._datasets)[:3])}): index each by"
                " itself, or give one name with --dataset"
            )
        return next(iter(self._datasets))

    def _one_split(self, split: Split | None) -> Split:
        told = self._splits
        if split is None:
            return next(iter(told)) if len(told) == 1 else "all"
        if wrong := sorted(told - {split, "all"}):
            if split == "all":
                return split
            raise InputError(f"--split {split}, but samples say {wrong[0]}: give the tars of one split only")
        return split

    def _one_crop(self, scale: float | None, table: pa.Table) -> CropRecipe:
        crops = {crop or CropRecipe() for crop in self._crops}
        if len(crops) > 1:
            raise InputError("samples are cut in several ways (crop in the JSON): index each way by itself")
        crop = crops.pop()
        if self._crops != {None}:
            if scale not in (None, crop.scale):
                raise InputError(f"--scale {scale}, but the JSON says {crop.scale}; leave out --scale")
            return crop
        sides = {*pc.unique(table["width"]).to_pylist(), *pc.unique(table["height"]).to_pylist()}
        return CropRecipe(scale=scale, size_px=sides.pop() if len(sides) == 1 else None)


def _is_beside(tar: Location, folder: Path) -> bool:
    return not tar.is_remote and Path(tar.url).parent.resolve() == folder.resolve()
