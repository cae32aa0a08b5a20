"""A set's real faces -> a new set of these and their self-blended fakes: training with reals only."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from pydantic import BaseModel, ConfigDict, Field

from dfdet.errors import DamagedSampleError, InputError
from dfdet.schema import FAKE, REAL, Failure, Sample, decode_part
from shards.blend.draws import Draws
from shards.blend.points import DensePoints
from shards.blend.sbi import self_blend
from shards.faces.align import map_points
from shards.media.decode import UnusableImageError, decode_rgb, encode
from shards.ordered import in_order
from shards.progress import Progress
from shards.sets.read import Row, SetReader
from shards.sets.write import Item, ShardWriter

METHOD = "sbi"
_LOOKED_AT = 100
"""Reals looked at before a set is refused for having no landmarks."""
_log = logging.getLogger(__name__)


class Blend(BaseModel):
    """Make self-blended fakes (SBI) of the real faces of a set, to train with real videos only."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    set: tyro.conf.Positional[Path]
    """Manifest (NAME.json) of a set of face crops; its fakes are left out."""
    out: Path
    """Folder for the new set."""
    name: str | None = None
    """Name of the new set; else the given set's with -sbi."""
    per_real: int = Field(1, ge=1, le=100)
    """Fakes of each real crop."""
    seed: int = Field(0, ge=0)
    """Seed of all that is drawn."""
    landmarks: Path | None = None
    """68 or 81 points of the crops, for closer outlines than the five stored points give: a .npz file
    with keys [N] (text) and points [N, 68 or 81, 2] (pixels of the crop)."""
    augment_target: bool = False
    """Alter the target instead of the source in half of the fakes, as the SBI authors do. They alter
    the real alike; here it stays as it is, so that the whole image tells such a fake: to compare."""
    max_shard_mib: int = Field(64, ge=1)
    """Size of a tar (MiB)."""
    workers: int = Field(0, ge=0)
    """Threads; 0: as many as CPUs. Equal bytes for any number."""


def blend_set(options: Blend, *, written_by: str = "", progress: Progress | None = None) -> Path:
    """Writes the reals of a set and self-blended fakes of them as a new set.

    A real keeps its bytes. A fake has method ``sbi``, its real's video, frame, landmarks, box and crop
    recipe, and its group at level ``exact``; a real whose group is unknown, or a person's only, gets
    with its fakes the group of its own video (the person stays as ``identity``). With ``per_real``
    above 1 the fakes' videos are named ``VIDEO+0``, ``VIDEO+1`` and so on. A real without landmarks
    is kept without a fake. A fake of 320 px takes about 20 ms of a core, half of it for lossless WebP.

    What could tell a fake apart without its seam: outside of the mask a fake of a lossless set has
    the real's very pixels. Fakes of JPEG reals are encoded with the real's own quantisation tables
    and chroma sampling; yet they are compressed twice where the real is once. Outside of the mask
    that moves few pixels, since the tables and the grid of blocks are the same, but within it the
    traces of the first compression are moved, and rarer than in a real. So store reals losslessly
    (the default of sharding), or train with JPEG augmentation, as the recipes do. From the corners of
    240 portraits alone, which no mask reaches, a random forest told fakes at AUROC .50 (lossless) and
    .55 (JPEG); with ``augment_target`` at .76 and .77.

    Args:
        options: The set and how to blend.
        written_by: Program, version and arguments for the manifest.
        progress: Called with the number of reals done and of all.

    Returns:
        The new set's manifest.

    Raises:
        InputError: No reals, no landmarks, a landmark file of another set, or the set itself as output.
        ShardSetError: The set cannot be read, or the folder cannot be written.
        DamagedSampleError: A real's bytes are damaged.
    """
    cv2.setNumThreads(1)  # The threads are ours; results would not differ.
    name = options.name or f"{options.set.stem}-sbi"
    if (options.out / f"{name}.json").resolve() == options.set.resolve():
        raise InputError(f"{options.set} would be overwritten by its own fakes; give another --name or --out")
    dense = DensePoints(options.landmarks) if options.landmarks else None
    with SetReader(options.set) as reader:
        groups = _groups(reader)
        _check_landmarks(reader, groups, dense, options)
        maker = _Maker(reader, dense, options)
        with _writer(options, name, reader, written_by) as writer:
            _write(writer, groups, maker, options.workers or os.cpu_count() or 1, progress)
    _warn(reader, maker, name)
    return writer.manifest_path


def _groups(reader: SetReader) -> dict[str, list[Row]]:
    """The reals by the group they get, in order of the set."""
    groups: dict[str, list[Row]] = {}
    for row in reader.rows:
        if row.label == REAL:
            groups.setdefault(_group(row), []).append(row)
    if not groups:
        raise InputError(f"{reader.path} holds no real face; give a set that does")
    return groups


def _group(row: Row) -> str:
    if row.group is not None and row.group_level == "exact":
        return row.group
    family = row.group.partition("/")[0] if row.group else decode_part(row.dataset)
    return f"{family}/{row.video}"


def _check_landmarks(
    reader: SetReader, groups: dict[str, list[Row]], dense: DensePoints | None, options: Blend
) -> None:
    rows = [row for group in groups.values() for row in group]
    if dense is not None:
        if not any(row.key in dense for row in rows):
            raise InputError(
                f"{options.landmarks} names none of the {len(rows)} reals of {reader.path}, as "
                f"{rows[0].key!r}; make it for this set"
            )
    elif not any(reader.sample(row).landmarks for row in rows[:_LOOKED_AT]):
        raise InputError(
            f"{reader.path}: its reals have no landmarks, as ready images have none; give 68 or 81 points "
            "with --landmarks, or make the set anew from videos or photographs with a face detector"
        )


def _writer(options: Blend, name: str, reader: SetReader, written_by: str) -> ShardWriter:
    manifest = reader.manifest
    return ShardWriter(
        options.out,
        name,
        dataset=manifest.dataset,
        split=manifest.split,
        crop=manifest.crop,
        max_shard_bytes=options.max_shard_mib << 20,
        written_by=written_by,
        failures=[_with_person(failure) for failure in manifest.failures if failure.label == REAL],
    )


def _write(
    writer: ShardWriter,
    groups: dict[str, list[Row]],
    maker: _Maker,
    workers: int,
    progress: Progress | None,
) -> None:
    total, done = sum(map(len, groups.values())), 0
    made = in_order(lambda group: maker(*group), groups.items(), workers, ahead=2 * workers)
    for rows, items in zip(groups.values(), made, strict=True):
        writer.add_group(items)
        done += len(rows)
        if progress:
            progress(done, total)


class _Maker:
    """Makes all samples of a group: each real, and its fakes behind it."""

    def __init__(self, reader: SetReader, dense: DensePoints | None, options: Blend) -> None:
        self._reader, self._dense, self._options = reader, dense, options
        self.without: list[str] = []
        """Keys of reals that got no fake."""

    def __call__(self, group: str, rows: Sequence[Row]) -> list[Item]:
        ordered = sorted(rows, key=lambda row: (row.frame, row.key))
        return [item for row in ordered for item in self._items(group, row)]

    def _items(self, group: str, row: Row) -> list[Item]:
        data, real = self._reader.image(row), _regrouped(self._reader.sample(row), group)
        items: list[Item] = [(real, row.ext, data, row.width, row.height)]
        try:
            items += self._fakes(real, row, data)
        except ValueError as error:
            _log.debug("%s: no fake: %s", row.key, error)
            self.without.append(row.key)
        return items

    def _fakes(self, real: Sample, row: Row, data: bytes) -> list[Item]:
        """Raises ValueError where the landmarks do not serve."""
        points = self._points(real)
        pixels = _decode(row, data)
        fakes: list[Item] = []
        for number in range(self._options.per_real):
            fake = self_blend(
                pixels,
                points,
                real.box,
                Draws(self._options.seed, row.key, number),
                seen=_seen(real, *pixels.shape[:2]),
                augment_target=self._options.augment_target,
            )
            video = f"{real.video}+{number}" if self._options.per_real > 1 else real.video
            sample = real.model_copy(update={"source": METHOD, "label": FAKE, "video": video})
            fakes.append((sample, row.ext, _encode_like(data, fake.image, row.ext), row.width, row.height))
        return fakes

    def _points(self, real: Sample) -> NDArray[np.float64]:
        if self._dense is not None and real.key in self._dense:
            return self._dense[real.key]
        if real.landmarks is None:
            raise ValueError("it has no landmarks")
        return np.asarray(real.landmarks, np.float64)


def _regrouped(real: Sample, group: str) -> Sample:
    if real.group == group and real.group_level == "exact":
        return real
    update = {"group": group, "group_level": "exact", "identity": _person(real)}
    return real.model_copy(update=update)


def _with_person(lost: Failure) -> Failure:
    """A real without a face, still beside the others of its person, whose groups are new."""
    return lost if lost.group_level == "exact" else lost.model_copy(update={"identity": _person(lost)})


def _person(real: Sample | Failure) -> str | None:
    return real.identity or (real.group.partition("/")[2] if real.group else None)


def _decode(row: Row, data: bytes) -> NDArray[np.uint8]:
    try:
        return decode_rgb(data)
    except UnusableImageError as error:
        raise DamagedSampleError(f"sample {row.key!r}: its image {error}; make the set anew") from error


def _seen(real: Sample, height: int, width: int) -> NDArray[np.bool_] | None:
    """Where the crop shows the frame; at a frame's edge a moved copy would bring its black in."""
    if real.to_crop is None or real.frame_size is None:
        return None
    right, bottom = real.frame_size[0] - 1, real.frame_size[1] - 1  # Centres of the last pixels.
    margin = 0.03 * max(height, width)
    corners = map_points([(0, 0), (right, 0), (right, bottom), (0, bottom)], np.array(real.to_crop))
    inside: Any = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(inside, np.rint(corners).astype(np.int32), (1,))
    reach = 2 * round(margin) + 1
    return cv2.erode(inside, np.ones((reach, reach), np.uint8), borderValue=(1,)).astype(bool)


def _encode_like(real: bytes, image: NDArray[np.uint8], ext: str) -> bytes:
    """Stores a fake as its real is stored."""
    if ext != "jpg":
        return encode(image, ext)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(real)) as like:
        tables: Any = getattr(like, "quantization", None)
        sampling = JpegImagePlugin.get_sampling(like)
    Image.fromarray(image).save(buffer, "JPEG", qtables=tables, subsampling=max(0, sampling))
    return buffer.getvalue()


def _warn(reader: SetReader, maker: _Maker, name: str) -> None:
    if maker.without:
        _log.warning(
            "%s: %d reals, as %r, have no landmarks that serve; they are in the set without a fake",
            name,
            len(maker.without),
            min(maker.without),
        )
    if any(row.ext == "jpg" and row.label == REAL for row in reader.rows):
        _log.warning(
            "%s: reals are JPEG, so fakes are compressed twice; train with JPEG augmentation, or store "
            "reals losslessly (--format webp)",
            name,
        )
