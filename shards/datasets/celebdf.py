"""Celeb-DF v2 (arXiv 1909.12962), and what Celeb-DF++ shares with it.

Layout: ``Celeb-real/idA_N.mp4``, ``YouTube-real/N.mp4``, ``Celeb-synthesis/idA_idB_N.mp4`` and
    ``List_of_testing_videos.txt``.
Label: by folder, and the list must agree: **in it 1 means real**, the reverse of everything here.
Group of a fake: ``idA_N``, the video that got idB's face (celeb-deepfakeforensics issue 6); exact.
    Identity: idA. YouTube-real has none.
Split: what the list names is test, all else train; there is no val. A folder of which the list names
    nothing is all test, since its test videos are not known.
Unknown: nothing, but mind that the list divides videos, not groups: fakes of one real lie in both splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD
from shards.datasets.lists import find_lists, lacking, told_by
from shards.datasets.walk import by_stem, read_numbered_lines, videos
from shards.source import Listing, ListOptions, Missing, Video

LIST = "List_of_testing_videos.txt"
REAL_FOLDERS = ("Celeb-real", "YouTube-real")
SourceOf = Callable[[str], str | None]
"""Source of a folder."""
_SYNTHESIS = "Celeb-synthesis"
_REAL = re.compile(r"(?P<person>id\d+)_\d+", re.ASCII)
_SWAP = re.compile(r"(?P<person>id\d+)_id\d+_(?P<number>\d+)", re.ASCII)


class Origin(NamedTuple):
    """What the name of a fake tells of the real video behind it."""

    real: str | None
    person: str | None


@dataclass(frozen=True)
class Place:
    """A folder of videos."""

    folder: str
    """Relative to the root, as in the list."""
    source: str
    origin: Callable[[str], Origin]
    """Of a video's name."""


def find(root: Path, options: ListOptions) -> Listing:
    """Lists the two folders of reals and the fakes.

    Raises:
        InputError: No list of test videos, or one that contradicts the folders.
    """
    places = [*real_places(), Place(_SYNTHESIS, _SYNTHESIS, swap_origin)]
    sources = {place.folder: place.source for place in places}
    return find_places("cdfv2", places, sources.get, root, options)


def real_places() -> list[Place]:
    """The folders of reals, in both releases."""
    return [Place(folder, REAL_METHOD, _real_origin) for folder in REAL_FOLDERS]


def swap_origin(name: str) -> Origin:
    """Of ``idA_idB_N``: the video idA_N and the person idA."""
    parts = _SWAP.fullmatch(name)
    return Origin(f"{parts['person']}_{parts['number']}", parts["person"]) if parts else Origin(None, None)


def _real_origin(name: str) -> Origin:
    parts = _REAL.fullmatch(name)
    return Origin(name, parts["person"] if parts else None)


def find_places(
    dataset: str, places: Sequence[Place], source_of: SourceOf, root: Path, options: ListOptions
) -> Listing:
    """Lists folders, with the split that the list of test videos tells.

    Args:
        dataset: Name in keys.
        places: The folders to list.
        source_of: Source of any folder that the list may name; None for others.
        root: Folder of the dataset.
        options: ``splits`` says where the list is.

    Raises:
        InputError: As :func:`find`.
    """
    found = {place: by_stem(videos(root / place.folder)) for place in places}
    if not any(found.values()):
        return Listing(dataset, ())
    named = _read_list(dataset, source_of, root, options)
    listed: list[Video] = []
    notes = []
    for place, paths in found.items():
        tested = {each.video for folder, each in named if folder == place.folder}
        if paths and not tested:
            notes.append(f"{LIST} names nothing of {place.folder}: its {len(paths)} videos are all test")
        for name, path in paths.items():
            listed.append(_video(place, name, path, is_test=not tested or name in tested))
    return Listing(dataset, tuple(listed), lacking((each for _, each in named), listed), tuple(notes))


def _video(place: Place, name: str, path: Path, *, is_test: bool) -> Video:
    origin = place.origin(name)
    return Video(
        path=path,
        source=place.source,
        video=name,
        split="test" if is_test else "train",
        # Celeb-DF++ has the reals of v2, so both share one family.
        group=f"cdfv2/{origin.real}" if origin.real else None,
        group_level="exact" if origin.real else "none",
        identity=origin.person,
    )


def _read_list(
    dataset: str, source_of: SourceOf, root: Path, options: ListOptions
) -> list[tuple[str, Missing]]:
    """Folder and video of each line, as ``1 YouTube-real/00170.mp4``."""
    places = [options.splits] if options.splits else [root]
    (path,) = find_lists([LIST], places, "it is part of the dataset's release")
    named = []
    for number, line in read_numbered_lines(path):
        label, _, name = line.partition(" ")
        video = PurePosixPath(name.strip())
        folder = str(video.parent)
        source = source_of(folder)
        if label not in {"0", "1"} or source is None:
            raise InputError(
                f"{path} line {number}: {line[:80]!r} is no label and video of {dataset} (as "
                "'1 YouTube-real/00170.mp4'); take the list of this very release"
            )
        if (label == "1") != (source == REAL_METHOD):
            raise InputError(
                f"{path} line {number}: {line[:80]!r} contradicts its folder: in this list 1 means real "
                "and 0 fake; take the list of the release"
            )
        named.append((folder, Missing(source, video.stem, "test", told_by(path, root))))
    return named
