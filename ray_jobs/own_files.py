"""The files that a user means by paths, folders and patterns of names."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfdet.errors import InputError
from shards.datasets.walk import VIDEO_SUFFIXES, text, tree
from shards.listing import SUFFIXES


@dataclass(frozen=True)
class Target:
    """A file to predict on."""

    path: Path
    """Absolute."""
    kind: Literal["video", "image"]
    bytes: int = 0
    modified_ns: int = 0

    @property
    def name(self) -> str:
        """The path as text."""
        return text(str(self.path))

    @property
    def stem(self) -> str:
        """A plain name for files about it, which no other path has."""
        digest = hashlib.blake2b(os.fsencode(self.path), digest_size=6).hexdigest()
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.stem)[:60].strip("-") + f"-{digest}"


def find_targets(paths: Iterable[str], folder: Path) -> list[Target]:
    """The files that a user means, each once, in the order given.

    A folder means the videos and images below it, known by their suffixes; a name that is no file is
    tried as a pattern of names (``**`` goes down folders). A file that is named itself is taken
    whatever its suffix is.

    Args:
        paths: Files, folders, patterns; never URLs.
        folder: What relative ones lie in.

    Raises:
        InputError: One of them means nothing.
    """
    found: dict[Path, None] = {}
    for each in paths:
        found.update(dict.fromkeys(_meant(each, folder)))
    return [_target(path) for path in found]


def _meant(given: str, folder: Path) -> Iterator[Path]:
    path = Path(os.path.abspath(folder / Path(given).expanduser()))  # noqa: PTH100 - links stay as they are
    if not given:
        raise InputError("an empty PATH: give files, folders or patterns")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", given):
        raise InputError(f"{given}: is a URL; download it, and give the file")
    if os.path.lexists(path):
        files = _files(path)
        missing = "holds no video or image"
    else:
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(given) else []  # noqa: PTH207
        files = [file for match in map(Path, matches) for file in _files(match)]
        place = "" if path == Path(given) else f" in {folder}"
        missing = f"no such file or folder{place}" if not matches else "matches no video or image"
    if not files:
        raise InputError(f"{text(given)}: {missing}")
    yield from files


def _files(path: Path) -> list[Path]:
    return list(tree(path, VIDEO_SUFFIXES | SUFFIXES)) if path.is_dir() else [path]


def _target(path: Path) -> Target:
    kind: Literal["video", "image"] = "image" if path.suffix.lower() in SUFFIXES else "video"
    try:
        status = path.stat()
    except OSError:  # told when it is read
        return Target(path, kind)
    return Target(path, kind, status.st_size, status.st_mtime_ns)
