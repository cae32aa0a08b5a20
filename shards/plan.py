"""From a listing to sets, parts and jobs: a pure function of names, sizes and options.

A *unit* is a group (a real and its fakes) or a video without group; a *part* is some units that will
be one tar. Workers never enter it, so any number of them makes equal bytes, and a part's name tells
whether a former run has finished the very same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfdet.errors import InputError
from dfdet.schema import CropRecipe, Split
from shards.options import VideoSets
from shards.source import Listing, Missing, Video

VERSION = 1
"""Raised whenever equal input and options give other samples, so that old parts are made again."""
SPLITS: tuple[Split, ...] = ("train", "val", "test", "all")
_MAKES_SAMPLES = (
    "frames pick seed stride min_frames detector_size threshold nms format quality".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Job:
    """One video to prepare."""

    video: Video
    unit: str
    """Its group, or its own name: what random frames are drawn from."""
    siblings: tuple[Video, ...] = ()
    """The others of an exact group: frames are paired by index up to the common length."""


@dataclass(frozen=True)
class Part:
    """Some units that will be one tar."""

    name: str
    """Number and fingerprint of all that determines its bytes."""
    units: tuple[tuple[Job, ...], ...]

    @property
    def jobs(self) -> list[Job]:
        """All its videos, in the order of writing."""
        return [job for unit in self.units for job in unit]


@dataclass(frozen=True)
class SetPlan:
    """One shard set to make."""

    name: str
    split: Split
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    """What lists name and the disk lacks, ``<source>/<video>``."""
    sha256: str
    """Fingerprint of the whole set."""

    @property
    def videos(self) -> int:
        """Number of videos."""
        return sum(len(unit) for part in self.parts for unit in part.units)


@dataclass(frozen=True)
class Selected:
    """What of a listing is to be written, and what a user should know of it."""

    videos: tuple[Video, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]


def unit_of(video: Video) -> str:
    """Name of the unit that a video lies in."""
    return video.group if video.group is not None else video.name


def variant(listing: Listing, how: str) -> Listing:
    """A dataset after re-compression: another name and compression, all else the same.

    Args:
        listing: What was found.
        how: As ``h264-crf40``.

    Raises:
        InputError: Not all of it are video files.
    """
    others = [video.path for video in listing.videos if video.kind != "video" or video.ready]
    if others:
        raise InputError(
            f"--recompress {how}: {len(others)} of {len(listing.videos)} sources are images, or folders or"
            f" archives of images, as {others[0]}; take a dataset of video files"
        )
    videos = tuple(
        replace(video, compression=f"{video.compression}+{how}" if video.compression else how)
        for video in listing.videos
    )
    return replace(listing, dataset=f"{listing.dataset}-{how}", videos=videos)


def select(listing: Listing, only: Sequence[Split], on_leak: str) -> Selected:
    """The videos of the wanted splits, proved to share no group between splits.

    Args:
        listing: What was found.
        only: Splits to keep; empty: all.
        on_leak: ``refuse``, or ``drop`` what stands in train or val and has its group in a later split.

    Raises:
        InputError: Nothing is left, or a group lies in two splits.
    """
    wanted = [video for video in listing.videos if not only or video.split in only]
    if not wanted:
        there = sorted({video.split for video in listing.videos}, key=SPLITS.index)
        raise InputError(f"--only {' '.join(only)}: no video is in that split; there are {', '.join(there)}")
    missing = tuple(each for each in listing.missing if not only or each.split in only)
    notes = list(listing.notes)
    leaks = _leaks(wanted)
    if leaks and on_leak == "refuse":
        unit, splits = next(iter(leaks.items()))
        raise InputError(
            f"{len(leaks)} groups lie in more than one split, as {unit!r} in {' and '.join(splits)}: scores "
            "would be too good; take one split (--only test), or leave them out of train (--on_leak drop)"
        )
    if leaks:
        kept = [video for video in wanted if video.split == leaks.get(unit_of(video), (video.split,))[-1]]
        notes.append(
            f"{len(wanted) - len(kept)} videos dropped: {len(leaks)} groups lie in a later split too"
        )
        wanted = kept
    notes += _shared_persons(wanted)
    return Selected(tuple(wanted), missing, tuple(notes))


def _leaks(videos: Iterable[Video]) -> dict[str, tuple[Split, ...]]:
    """Splits, in order, of each unit that lies in more than one."""
    splits: dict[str, set[Split]] = defaultdict(set)
    for video in videos:
        splits[unit_of(video)].add(video.split)
    return {
        unit: tuple(sorted(found, key=SPLITS.index))
        for unit, found in sorted(splits.items())
        if len(found) > 1
    }


def _shared_persons(videos: Iterable[Video]) -> list[str]:
    splits: dict[str, set[Split]] = defaultdict(set)
    for video in videos:
        if video.identity is not None:
            splits[video.identity].add(video.split)
    shared = sum(len(found) > 1 for found in splits.values())
    return [f"{shared} persons are in more than one split, as the dataset's own lists have it"] * (shared > 0)


def plan_sets(
    options: VideoSets, dataset: str, selected: Selected, crop: CropRecipe, encoder: str | None = None
) -> list[SetPlan]:
    """The sets to make, one a split, in the order train, val, test.

    Args:
        options: Frames of a video, samples of a shard, and all that makes samples what they are.
        dataset: Dataset with variant.
        selected: Videos without leaks.
        crop: Recipe of the crops, with the detector's checksum.
        encoder: What re-compresses the videos, with its version and options.
    """
    name = options.set_name(dataset)
    sets = []
    for split in SPLITS:
        videos = [video for video in selected.videos if video.split == split]
        if not videos:
            continue
        parts = _parts(options, videos, _recipe(options, dataset, crop, encoder))
        missing = sorted(f"{each.source}/{each.video}" for each in selected.missing if each.split == split)
        sha256 = _digest([[part.name for part in parts], missing])
        sets.append(
            SetPlan(name if split == "all" else f"{name}-{split}", split, parts, tuple(missing), sha256)
        )
    return sets


def _recipe(options: VideoSets, dataset: str, crop: CropRecipe, encoder: str | None) -> list[object]:
    chosen = options.model_dump(mode="json", include=set(_MAKES_SAMPLES))
    anew = [] if encoder is None else [encoder]  # Plans without keep the fingerprints they had.
    return [VERSION, dataset, chosen, crop.model_dump(mode="json"), *anew]


def _parts(options: VideoSets, videos: Sequence[Video], recipe: list[object]) -> tuple[Part, ...]:
    parts: list[Part] = []
    units: list[tuple[Job, ...]] = []
    planned = 0

    def close() -> None:
        stamps = [[_stamp(job.video, options.root) for job in unit] for unit in units]
        parts.append(Part(f"{len(parts):06d}-{_digest([recipe, stamps])[:16]}", tuple(units)))

    for unit in _units(videos):
        size = sum(1 if job.video.kind == "image" else options.frames for job in unit)
        if units and planned + size > options.shard_samples:
            close()
            units, planned = [], 0
        units.append(unit)
        planned += size
    close()
    return tuple(parts)


def _units(videos: Sequence[Video]) -> list[tuple[Job, ...]]:
    """Units in an order that mixes reals and fakes, persons and folders."""
    members: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        members[unit_of(video)].append(video)
    names = sorted(members, key=lambda name: (hashlib.blake2b(name.encode()).digest(), name))
    return [
        _jobs(name, sorted(members[name], key=lambda video: (video.source, video.video))) for name in names
    ]


def _jobs(unit: str, videos: Sequence[Video]) -> tuple[Job, ...]:
    exact = [video for video in videos if video.group_level == "exact" and not video.ready]
    return tuple(
        Job(video, unit, tuple(other for other in exact if other != video) if video in exact else ())
        for video in videos
    )


def _stamp(video: Video, root: Path) -> list[object]:
    """What of a video enters the fingerprint: names, labels and sizes, not times nor the root's place."""
    return [
        video.source,
        video.video,
        video.group,
        video.group_level,
        video.identity,
        video.kind,
        video.ready,
        video.compression,
        *(_place(path, root) for path in (video.path, video.mask)),
    ]


def _place(path: Path | None, root: Path) -> list[object] | None:
    if path is None:
        return None
    name = os.path.relpath(path, root)
    return [os.fsencode(name).decode("utf-8", "backslashreplace"), *_size(path)]


def _size(path: Path) -> tuple[int, int]:
    """Number of files and bytes; a file that cannot be looked at has neither."""
    try:
        if not path.is_dir():
            return 1, path.stat().st_size
        with os.scandir(path) as entries:
            sizes = [entry.stat().st_size for entry in entries]
        return len(sizes), sum(sizes)
    except OSError:
        return 0, 0


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
