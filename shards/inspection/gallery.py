"""Chooses the faces of a contact sheet: pairs, frames of a video, and what failed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dfdet.errors import DamagedSampleError
from dfdet.schema import FAKE, REAL, REAL_METHOD, Manifest, Sample
from shards.inspection.sheet import Block, Strip, Tile
from shards.media.decode import UnusableImageError, decode_rgb
from shards.names import printable, readable
from shards.sets.read import Row, SetReader

COLUMNS = 8
"""Faces in a row."""
SHOWN = 20
"""Failures and shortfalls listed of each kind."""


def blocks(reader: SetReader, pairs: int, seed: int) -> Iterator[Block]:
    """Blocks of the sheet of a set.

    Args:
        reader: The set.
        pairs: Groups shown, each a real with its fakes; half as many videos are shown in frames.
        seed: Seed of the choice.
    """
    groups = {
        name: rows
        for name, rows in exact_groups(reader.rows).items()
        if {row.label for row in rows} == {REAL, FAKE}
    }
    if groups:
        chosen = _drawn(groups, seed)[:pairs]
        strips = tuple(Strip(printable(name), _tiles(reader, _pairs(groups[name]))) for name in chosen)
        yield Block("A real and its fakes", strips)
    else:
        yield Block("Faces (no real has a fake here)", tuple(_singles(reader, pairs, seed)))
    several = {name: rows for name, rows in _videos(reader.rows).items() if len(rows) > 1}
    if several:
        chosen = _drawn(several, seed)[: max(1, pairs // 2)]
        strips = tuple(Strip(readable(name), _tiles(reader, _spread(several[name]))) for name in chosen)
        yield Block("Frames of one video: the same person, cut alike?", strips)
    yield from _texts(reader.manifest)


def exact_groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Samples by group, of those whose group is exactly known."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.group is not None and row.group_level == "exact":
            groups[row.group].append(row)
    return groups


def _drawn(names: Iterable[str], seed: int) -> list[str]:
    """Names in an order that the seed draws."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode()).digest())


def _pairs(rows: Sequence[Row]) -> list[Row]:
    """Reals, each with the fake of the nearest frame of each method, at as many frames as have room.

    Frames are spread over those of the real that most methods have.
    """
    methods: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.label == FAKE:
            methods[row.method].append(row)
    frames = Counter(row.frame for fakes in methods.values() for row in fakes)
    reals = [row for row in rows if row.label == REAL]
    most = max(frames[row.frame] for row in reals)
    common = _spread(
        [row for row in reals if frames[row.frame] == most], max(1, COLUMNS // (1 + len(methods)))
    )
    tiles = []
    for real in common:
        tiles.append(real)
        for _, fakes in sorted(methods.items()):
            tiles.append(min(fakes, key=lambda row: (abs(row.frame - real.frame), row.key)))
    return tiles[:COLUMNS]


def _singles(reader: SetReader, pairs: int, seed: int) -> Iterator[Strip]:
    methods: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in reader.rows:
        methods[row.method][row.key] = row
    for method in sorted(methods, key=lambda name: (name != REAL_METHOD, name)):
        keys = _drawn(methods[method], seed)[: 2 * pairs]
        for first in range(0, len(keys), COLUMNS):
            rows = [methods[method][key] for key in keys[first : first + COLUMNS]]
            yield Strip(method, _tiles(reader, rows))


def _videos(rows: Iterable[Row]) -> dict[str, list[Row]]:
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        videos[row.key.rpartition("/")[0]].append(row)
    return videos


def _spread(rows: Sequence[Row], count: int = COLUMNS) -> list[Row]:
    """Frames from the first to the last, as far apart as the count allows; one: from the middle."""
    ordered = sorted(rows, key=lambda row: row.frame)
    if count == 1:
        return [ordered[len(ordered) // 2]]
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _tiles(reader: SetReader, rows: Iterable[Row]) -> tuple[Tile, ...]:
    return tuple(_tile(reader, row) for row in rows)


def _tile(reader: SetReader, row: Row) -> Tile:
    problems, sample, image = [], None, None
    try:
        sample = reader.sample(row)
    except DamagedSampleError as error:
        problems.append(_reason(error))
    try:
        image = decode_rgb(reader.image(row, checked=False))
    except (DamagedSampleError, UnusableImageError) as error:
        problems.append(_reason(error))
    caption = (f"{row.method}  {_score(sample)}", f"{row.frame}: {printable(row.video)}")
    landmarks = (sample and sample.landmarks) or ()
    return Tile(caption, image, landmarks, sample.box if sample else None, "; ".join(problems))


def _score(sample: Sample | None) -> str:
    return "" if sample is None or sample.score is None else f"{sample.score:.3f}"


def _reason(error: Exception) -> str:
    """The last part of a message that names file and sample first."""
    return str(error).partition("': ")[2].partition(";")[0] or str(error)


def _texts(manifest: Manifest) -> Iterator[Block]:
    listed = (
        ("without a face", [f"{readable(each.video)} {each.reason}" for each in manifest.failures]),
        (
            "with fewer faces than frames",
            [
                f"{readable(each.video)}: {each.faces} faces in {each.asked} frames, {each.reason}"
                for each in manifest.shortfalls
            ],
        ),
        ("named by lists, not on disk", [printable(name) for name in manifest.missing]),
    )
    for what, lines in listed:
        if lines:
            more = len(lines) - SHOWN
            shown = lines[:SHOWN] + [f"and {more} more, in the manifest"] * (more > 0)
            yield Block(f"{len(lines)} videos {what}", lines=tuple(shown))
