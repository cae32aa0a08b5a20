"""Official lists of videos: where they lie, and what they name that is not on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dfdet.errors import InputError
from shards.datasets.walk import text
from shards.source import Missing, Video


def find_lists(names: Sequence[str], places: Iterable[Path | None], origin: str) -> list[Path]:
    """The files of these names, all from the first place that holds any of them.

    Args:
        names: File names, all of which are needed.
        places: Folders to look in, in order; None is passed over.
        origin: Where the lists come from, for the message.

    Raises:
        InputError: No place holds them, or a place holds only some.
    """
    looked = [place for place in places if place is not None]
    for place in looked:
        there = [place / name for name in names if (place / name).is_file()]
        if len(there) == len(names):
            return there
        if there:
            absent = next(name for name in names if place / name not in there)
            raise InputError(f"{place} lacks {absent}, which belongs to {there[0].name}; {origin}")
    raise InputError(
        f"no official split list ({', '.join(names)}) in {', '.join(map(str, looked))}: without it a test "
        f"video could get into train; {origin}; --splits FOLDER says where they are"
    )


def told_by(path: Path, root: Path) -> str:
    """A list's name as records have it: relative to the root where it lies in it."""
    return text(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)


def lacking(named: Iterable[Missing], videos: Iterable[Video]) -> tuple[Missing, ...]:
    """What is named and not among the videos, each once."""
    there = {(video.source, video.video) for video in videos}
    absent = {(each.source, each.video): each for each in named}
    return tuple(each for name, each in absent.items() if name not in there)


def short_of(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """A note for each kind of video of which another number is there than its authors tell.

    None where nothing is there at all, which is another problem.
    """
    if not any(found.values()):
        return []
    return [
        f"{found.get(kind, 0)} {kind} videos are there, the whole dataset has {count}"
        for kind, count in official.items()
        if found.get(kind, 0) != count
    ]


def mask_note(fakes: Sequence[Video]) -> list[str]:
    """A note on absent masks, for datasets with several people in view."""
    bare = sum(video.mask is None for video in fakes)
    if not bare:
        return []
    return [
        f"{bare} of {len(fakes)} fakes have no mask video: where several people are in view, a face other "
        "than the forged one may be taken"
    ]
