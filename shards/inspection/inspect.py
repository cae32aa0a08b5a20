"""Looks at a set: counts, sizes, scores, failures, and a contact sheet of its faces."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group as Renderables
from rich.table import Table
from rich.text import Text

from dfdet.errors import DamagedSampleError, InputError
from dfdet.schema import FAKE, REAL, Manifest
from shards.inspection.gallery import blocks, exact_groups
from shards.inspection.sheet import draw_sheet
from shards.progress import Progress
from shards.sets.read import Row, SetReader

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
SHOWN = 20
"""Rows of a table of reasons or sizes."""


class Inspect(BaseModel):
    """Look at a set: counts, sizes, scores, failures, and a contact sheet of its faces."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    set: tyro.conf.Positional[Path]
    """Manifest (NAME.json) of the set."""
    out: Path | None = None
    """PNG of the contact sheet; else NAME-inspect.png beside the set."""
    pairs: int = Field(12, ge=1, le=100)
    """Groups on the sheet, each a real with its fakes; half as many videos are shown frame by frame."""
    seed: int = 0
    """Seed of what is shown."""


@dataclass
class Inspection:
    """What a set holds. Printed by rich as tables."""

    manifest: Manifest
    sheet: Path
    """The contact sheet."""
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by split and method."""
    videos: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Names of the videos by split and method."""
    images: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """Samples by extension, width and height (pixels)."""
    scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Detector scores (0 to 1) by method."""
    candidates: Counter[int] = field(default_factory=Counter)
    """Samples by the number of faces in their frame, where it was recorded."""
    groups: Counter[str] = field(default_factory=Counter)
    """Groups by what they hold: ``real and fake``, ``real only``, ``fake only``; and samples of no
    group at level exact as ``samples in no exact group``."""
    damaged: list[str] = field(default_factory=list)
    """Samples whose JSON cannot be read, with the reason."""

    @property
    def failures(self) -> Counter[tuple[str, str]]:
        """Videos without a face by method and reason."""
        return Counter((each.video.split("/")[1], each.reason) for each in self.manifest.failures)

    @property
    def shortfalls(self) -> Counter[tuple[str, str]]:
        """Videos with fewer faces than frames asked for, by method and reason."""
        return Counter((each.video.split("/")[1], each.reason) for each in self.manifest.shortfalls)

    @property
    def bytes(self) -> int:
        """Size of tars and index."""
        return sum(each.bytes for each in (*self.manifest.shards, self.manifest.index))

    def score_quantiles(self, method: str) -> tuple[float, ...]:
        """Detector scores of a method at ``QUANTILES``."""
        return tuple(np.quantile(self.scores[method], QUANTILES).tolist())

    def __rich__(self) -> Renderables:
        tables = [self._counts(), self._images()]
        tables += [self._scores()] * bool(self.scores) + [self._faces()] * bool(self.candidates)
        tables += [_reasons("videos without a face", self.failures)] * bool(self.failures)
        tables += [_reasons("videos with fewer faces than frames", self.shortfalls)] * bool(self.shortfalls)
        return Renderables(*tables, *map(Text, self.lines()))

    def lines(self) -> list[str]:
        """What stands below the tables."""
        manifest = self.manifest
        where = f"{len(manifest.shards)} shards, {self.bytes / 2**20:.1f} MiB"
        crop = ", ".join(f"{name} {value}" for name, value in manifest.crop.model_dump().items() if value)
        lines = [f"{manifest.samples} samples in {where}", f"crop: {crop}"]
        lines += [f"groups, {what}: {count}" for what, count in sorted(self.groups.items())]
        if manifest.missing:
            lines.append(f"named by lists, not on disk: {len(manifest.missing)}, as {manifest.missing[0]}")
        if self.damaged:
            lines.append(f"damaged samples: {len(self.damaged)}, as {self.damaged[0]}")
        return [*lines, f"contact sheet: {self.sheet}"]

    def _counts(self) -> Table:
        table = _table(f"{self.manifest.name} ({self.manifest.dataset})", "split", "method")
        for name in ("videos", "frames", "frames a video"):
            table.add_column(name, justify="right")
        for split, method in sorted(self.frames):
            videos, frames = len(self.videos[split, method]), self.frames[split, method]
            table.add_row(split, Text(method), str(videos), str(frames), f"{frames / videos:.1f}")
        return table

    def _images(self) -> Table:
        table = _table("images", "format", "width", "height", "samples")
        for (ext, width, height), count in self.images.most_common(SHOWN):
            table.add_row(ext, str(width), str(height), str(count))
        if len(self.images) > SHOWN:
            table.add_row(f"and {len(self.images) - SHOWN} sizes more", "", "", "")
        return table

    def _scores(self) -> Table:
        table = _table("detector score", "method", "least", "5 %", "median", "95 %", "most")
        for method in sorted(self.scores):
            table.add_row(method, *(f"{value:.3f}" for value in self.score_quantiles(method)))
        return table

    def _faces(self) -> Table:
        table = _table("faces in the frame", "faces", "samples")
        for faces, count in sorted(self.candidates.items()):
            table.add_row(str(faces), str(count))
        return table


def inspect_set(options: Inspect, *, progress: Progress | None = None) -> Inspection:
    """Counts what a set holds, and draws its contact sheet.

    Images are read for the sheet only, and damaged samples shown there as such; for checksums there
    is :func:`shards.sets.verify.verify_set`.

    Args:
        options: The set, and what is drawn.
        progress: Called after each sample.

    Raises:
        InputError: ``out`` does not end in .png.
        ShardSetError: The set is unfinished, or its index or a tar cannot be opened.
        OSError: The sheet cannot be written.
    """
    out = options.out or options.set.with_name(f"{options.set.stem}-inspect.png")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the contact sheet is a PNG; give a name that ends in .png")
    with SetReader(options.set) as reader:
        found = Inspection(reader.manifest, out)
        for done, row in enumerate(reader.rows, 1):
            _count(found, reader, row)
            if progress:
                progress(done, len(reader.rows))
        _count_groups(found, reader.rows)
        title = f"{reader.manifest.name}: {len(reader.rows)} samples of {reader.manifest.dataset}"
        draw_sheet(out, title, list(blocks(reader, options.pairs, options.seed)))
    return found


def _count(found: Inspection, reader: SetReader, row: Row) -> None:
    found.images[row.ext, row.width, row.height] += 1
    split = found.manifest.split
    try:
        sample = reader.sample(row)
    except DamagedSampleError as error:
        found.damaged.append(str(error))
    else:
        split = sample.split
        if sample.score is not None:
            found.scores[row.method].append(sample.score)
        if sample.candidates:
            found.candidates[len(sample.candidates)] += 1
    found.frames[split, row.method] += 1
    found.videos[split, row.method].add(row.video)


def _count_groups(found: Inspection, rows: Iterable[Row]) -> None:
    names = {(REAL, FAKE): "real and fake", (REAL,): "real only", (FAKE,): "fake only"}
    exact = exact_groups(rows)
    for members in exact.values():
        found.groups[names[tuple(sorted({row.label for row in members}))]] += 1
    if outside := found.manifest.samples - sum(map(len, exact.values())):
        found.groups["samples in no exact group"] = outside


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")


def _reasons(title: str, counts: Counter[tuple[str, str]]) -> Table:
    table = _table(title, "method", "reason", "videos")
    for (method, reason), count in counts.most_common(SHOWN):
        table.add_row(Text(method), Text(reason), str(count))
    if len(counts) > SHOWN:
        table.add_row("", f"and {len(counts) - SHOWN} reasons more, in the manifest", "")
    return table
