"""The frames of a source, whatever it is: a video, an image, a folder or an archive of images."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dfdet.errors import InputError
from shards.datasets.walk import files
from shards.detect.faces import Image
from shards.listing import SUFFIXES
from shards.media.archive import Content, ImageArchive
from shards.media.decode import (
    Stored,
    StoreFormat,
    UnusableImageError,
    decode_rgb,
    encode,
    read_bytes,
    store_bytes,
)
from shards.media.stream import UnusableVideoError
from shards.media.video import VideoFile
from shards.source import Video


class Footage(ABC):
    """Frames by position; a context manager."""

    length: int
    """Frames; positions are below it."""
    numbers: Sequence[int]
    """Number of the frame at each position, for keys; ascending and unique."""
    problem: str | None = None
    """Why frames could not be read, the last reason met."""
    note: str | None = None
    """What is wrong with the whole, though its frames can be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Closes what is open."""

    @abstractmethod
    def frames(self, positions: Sequence[int]) -> Iterator[tuple[int, Image]]:
        """Position and image (RGB, [H, W, 3], upright), ascending; unreadable ones are left out."""

    @abstractmethod
    def stored(
        self, positions: Sequence[int], store: StoreFormat = "keep", quality: int = 95
    ) -> Iterator[tuple[int, Stored | str]]:
        """Position and image as a set holds it, or the reason why there is none.

        Args:
            positions: Of the frames.
            store: ``keep`` takes plain image files byte for byte; frames of a video become WebP.
            quality: Of ``jpg`` (1 to 100).
        """


def open_footage(video: Video) -> Footage:
    """Opens a source by its kind.

    Raises:
        UnusableVideoError: It is unreadable, empty, or holds no frames.
    """
    if video.kind == "video":
        return _VideoFootage(video.path)
    if video.kind == "image":
        return _Files([video.path], [0])
    if video.kind == "archive":
        return _Archive(video.path)
    return _folder(video.path)


def read_masks(path: Path, indices: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Masks [H, W] of those frames that a mask video has: 0 to 255, the largest of red, green and blue.

    Raises:
        UnusableVideoError: The file is unreadable, or no video.
    """
    with VideoFile(path) as video:
        found = [index for index in indices if index < video.length]
        return {index: image.max(axis=2) for index, image in video.frames(found)}


class _VideoFootage(Footage):
    def __init__(self, path: Path) -> None:
        self._video = VideoFile(path)
        self.length = self._video.length
        self.numbers = range(self.length)
        self.note = self._video.cut_off

    def close(self) -> None:
        self._video.close()

    def frames(self, positions: Sequence[int]) -> Iterator[tuple[int, Image]]:
        yield from self._video.frames(positions)
        self.problem = self._video.problem

    def stored(
        self, positions: Sequence[int], store: StoreFormat = "keep", quality: int = 95
    ) -> Iterator[tuple[int, Stored | str]]:
        ext = "webp" if store == "keep" else store
        missing = set(positions)
        for position, image in self.frames(positions):
            missing.remove(position)
            yield position, Stored(ext, encode(image, ext, quality), image.shape[1], image.shape[0])
        for position in sorted(missing):
            yield position, self.problem or "does not decode"


class _Images(Footage):
    """Frames that are image files."""

    @abstractmethod
    def _contents(self, positions: Sequence[int]) -> Iterator[tuple[int, Content]]:
        """Position and bytes, ascending."""

    def frames(self, positions: Sequence[int]) -> Iterator[tuple[int, Image]]:
        for position, data in self._contents(positions):
            try:
                yield position, decode_rgb(_checked(data))
            except UnusableImageError as error:
                self.problem = str(error)

    def stored(
        self, positions: Sequence[int], store: StoreFormat = "keep", quality: int = 95
    ) -> Iterator[tuple[int, Stored | str]]:
        for position, data in self._contents(positions):
            try:
                yield position, store_bytes(_checked(data), store, quality)
            except UnusableImageError as error:
                self.problem = str(error)
                yield position, self.problem


class _Files(_Images):
    def __init__(self, paths: Sequence[Path], numbers: Sequence[int]) -> None:
        self._paths, self.numbers, self.length = paths, numbers, len(paths)

    def close(self) -> None:
        """Nothing is open between reads."""

    def _contents(self, positions: Sequence[int]) -> Iterator[tuple[int, Content]]:
        for position in sorted(set(positions)):
            try:
                yield position, read_bytes(self._paths[position])
            except UnusableImageError as error:
                yield position, error


class _Archive(_Images):
    def __init__(self, path: Path) -> None:
        self._archive = ImageArchive(path)
        places = list(self._archive.names)
        self.numbers, order = _numbered(list(self._archive.names.values()))
        self._places = [places[rank] for rank in order]
        self.length = len(places)

    def close(self) -> None:
        self._archive.close()

    def _contents(self, positions: Sequence[int]) -> Iterator[tuple[int, Content]]:
        position_of = {self._places[position]: position for position in sorted(set(positions))}
        for place, content in self._archive.contents(list(position_of)):
            yield position_of[place], content


def _folder(path: Path) -> _Files:
    try:
        paths = files(path, SUFFIXES)
    except InputError as error:
        raise UnusableVideoError(f"cannot be read: {error}") from error
    if not paths:
        raise UnusableVideoError("has no images" if path.is_dir() else "is no folder")
    numbers, order = _numbered([path.name for path in paths])
    return _Files([paths[rank] for rank in order], numbers)


def _checked(data: Content) -> bytes:
    if isinstance(data, UnusableImageError):
        raise data
    return data


def _numbered(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Frame numbers, and the order of the names that they belong to.

    The number that each name ends in, where all are unique; else the position in natural order.
    """
    ends = [re.search(r"[0-9]+$", PurePosixPath(name).stem) for name in names]
    numbers = [int(end[0]) for end in ends if end and len(end[0]) <= 9]
    if len(set(numbers)) == len(names):
        order = sorted(range(len(names)), key=numbers.__getitem__)
        return [numbers[place] for place in order], order
    order = sorted(range(len(names)), key=lambda place: _natural(names[place]))
    return list(range(len(names))), order


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Digits compare as numbers, however long."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts]
    return [(len(digits[i]), digits[i]) if i % 2 else (0, part) for i, part in enumerate(parts)], name
