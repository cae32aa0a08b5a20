"""Matches the videos that a dataset's own lists name with the files on the disk.

Lists come from outside: their names are only looked up among the files found, never opened as paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from shards.datasets import walk
from shards.source import Missing, Video


class LeftOut:
    """Counts what a listing leaves out, by reason, each with its first example."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: object) -> None:
        """Counts one case; ``reason`` reads like ``files that no list names``."""
        self._counts[reason] += 1
        self._examples.setdefault(reason, f"{example!r:.100}")

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each reason."""
        return tuple(
            f"left out: {reason}: {count} (as {self._examples[reason]})"
            for reason, count in self._counts.items()
        )


def by_path(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Files by path below the root, as text with slashes."""
    return {walk.text(path.relative_to(root).as_posix()): path for path in paths}


def by_file_stem(paths: Iterable[Path], left_out: LeftOut) -> dict[str, Path]:
    """Files by name without suffix, wherever they lie; the first of a name counts."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = walk.text(path.stem)
        if stem in found:
            left_out.add("files of the same name as another", path.name)
        found.setdefault(stem, path)
    return found


def match(
    named: Iterable[tuple[Video, str]], present: Mapping[str, Path], left_out: LeftOut
) -> tuple[list[Video], list[Missing]]:
    """Gives each named video its file; what has none is missing, what no list names is left out.

    Args:
        named: Videos whose ``path`` is a key of ``present``, each with the file that names it.
        present: Files found.
        left_out: Where names given twice and files that no list names are counted.
    """
    videos: list[Video] = []
    missing: list[Missing] = []
    taken: set[tuple[str, str]] = set()
    files: set[str] = set()
    for video, told_by in named:
        files.add(str(video.path))
        path = present.get(str(video.path))
        if (video.source, video.video) in taken:
            left_out.add("videos named twice", video.name)
        elif path is None:
            missing.append(Missing(video.source, video.video, video.split, told_by))
        else:
            videos.append(replace(video, path=path))
        taken.add((video.source, video.video))
    for file in present:
        if file not in files:
            left_out.add("files that no list names", file)
    return videos, missing


def is_safe(name: Any) -> bool:
    """Whether a value from a list is a relative path that stays inside, in characters that files can have."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    try:
        name.encode()  # JSON may hold halves of characters.
    except UnicodeEncodeError:
        return False
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_plain(name: Any) -> bool:
    """Whether a value from a list is a name without folders."""
    return is_safe(name) and "/" not in name
