"""The faces in a user's own file, found and cut as a recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np

from dfdet.schema import CropRecipe
from ray_jobs.own_files import Target
from shards.detect.faces import Detector, DetectorError, Image
from shards.faces.choose import Selection, choose, link
from shards.faces.looks import Cut, Look
from shards.media.footage import Footage, open_footage
from shards.media.frames import pick
from shards.media.stream import Stream, UnusableVideoError
from shards.prepare import CHUNK_BYTES
from shards.source import Video

Box = tuple[float, float, float, float]
THUMBNAIL_PX = 640
"""Long side of the frames that pictures show (pixels)."""


@dataclass(frozen=True)
class Looking:
    """How faces are looked for."""

    recipe: CropRecipe
    frames: int = 32
    """Frames of a video, spread evenly."""
    everyone: bool = False
    """Every person, rather than the one that the recipe selects."""
    ready: bool = False
    """Files are crops already."""
    thumbnails: bool = False
    """Keep shrunk frames for pictures."""


@dataclass(frozen=True)
class Seen:
    """A face in a frame."""

    face: int
    """Which person of the file."""
    frame: int
    time_s: float | None
    box: Box | None
    """In pixels of the frame; None for ready crops."""
    crop: Image


@dataclass
class Found:
    """The faces of a file."""

    seen: list[Seen] = field(default_factory=list)
    """In order of time."""
    positions: list[int] = field(default_factory=list)
    """Frames that were asked for."""
    read: int = 0
    """Frames that could be read."""
    lost: Counter[str] = field(default_factory=Counter)
    """Frames that gave no face, by reason."""
    note: str | None = None
    thumbnails: dict[int, tuple[Image, float]] = field(default_factory=dict)
    """Shrunk frames by number, and how much they were shrunk."""
    fps: float | None = None

    @property
    def reason(self) -> str | None:
        """What was lost, in a line."""
        asked = len(self.positions)
        parts = [f"{count} of {asked} frames {what}" for what, count in sorted(self.lost.items())]
        return ", ".join(parts + ([self.note] if self.note else [])) or None


class Finder:
    """Finds the faces of files; opened once in a process.

    Args:
        looking: How.
        detector: None for ready crops.
    """

    def __init__(self, looking: Looking, detector: Detector | None) -> None:
        self.looking, self.detector = looking, detector
        selection = looking.recipe.selection
        self.selection = cast(Selection, selection if selection in ("mask", "track") else "largest")
        cv2.setNumThreads(1)  # one process a core does the scaling

    def __call__(self, target: Target) -> Found:
        """The faces of a file, perhaps none.

        Raises:
            UnusableVideoError: No frame of it can be read; the text is the reason.
            DetectorError: The detector failed.
            StorageAwayError: The file cannot be reached for the moment.
        """
        found = Found()
        with open_footage(Video(target.path, "own", "own", "all", kind=target.kind)) as footage:
            found.positions = pick(footage.length, self.looking.frames, "uniform")
            frames, times = self._counted(footage, found), _Times(target, footage.length)
            if self.looking.ready:
                found.seen = [
                    Seen(0, footage.numbers[place], times(place), None, image) for place, image in frames
                ]
            else:
                found.seen = [
                    Seen(face, footage.numbers[look.position], times(look.position), _box(look, index), cut)
                    for look, index, face, cut in self._cut(list(self._looks(frames, found)), found)
                ]
            self._tell_losses(footage, found)
            found.fps = times.fps
        return found

    def _tell_losses(self, footage: Footage, found: Found) -> None:
        if not found.read:
            raise UnusableVideoError(footage.problem or "no frame can be read")
        if unread := len(found.positions) - found.read:
            why = f" ({footage.problem})" if footage.problem else ""
            found.lost[f"could not be read{why}"] += unread
        found.note = footage.note

    def _counted(self, footage: Footage, found: Found) -> Iterator[tuple[int, Image]]:
        for place, image in footage.frames(found.positions):
            found.read += 1
            if self.looking.thumbnails:
                found.thumbnails[footage.numbers[place]] = shrunk(image, THUMBNAIL_PX)
            yield place, image

    def _looks(self, frames: Iterator[tuple[int, Image]], found: Found) -> Iterator[Look]:
        """Frames with their faces cut, the frames themselves let go."""
        assert self.detector is not None, "only ready crops need no detector"
        for chunk in _chunks(frames):
            try:
                faces = self.detector([image for _, image in chunk])
            except Exception as error:
                told = " ".join(str(error).split())[:200]
                raise DetectorError(f"the detector failed ({type(error).__name__}: {told})") from error
            for (place, image), each in zip(chunk, faces, strict=True):
                look = Look(place, image, each)
                if not len(each.scores):
                    found.lost["have no face"] += 1
                look.cut_all(self.looking.recipe)
                yield look

    def _cut(self, looks: Sequence[Look], found: Found) -> Iterator[tuple[Look, int, int, Image]]:
        """Look, place in it, person and crop of each face that is wanted."""
        for look, index, face in self._wanted(looks, found):
            cut = look.cut(index, self.looking.recipe)
            if isinstance(cut, Cut):
                yield look, index, face, cut.image
            else:
                found.lost[f"have a face that cannot be aligned ({cut})"] += 1

    def _wanted(self, looks: Sequence[Look], found: Found) -> Iterator[tuple[Look, int, int]]:
        faces, colours = [look.faces for look in looks], [look.colours for look in looks]
        if self.looking.everyone:
            for look, numbers in zip(looks, link(faces, colours), strict=True):
                yield from ((look, index, face) for index, face in enumerate(numbers))
            return
        nothing, sizes = [None] * len(looks), [look.size for look in looks]
        for look, choice in zip(looks, choose(faces, self.selection, nothing, sizes, colours), strict=True):
            if choice is not None:
                yield look, choice.index, 0
            elif len(look.faces.scores):
                found.lost["do not show the person"] += 1


class _Times:
    """Times of frames, from the packets where each frame has one, else from the average rate."""

    def __init__(self, target: Target, length: int) -> None:
        self.fps: float | None = None
        self.exact: list[float] = []
        if target.kind != "video":
            return
        stream = Stream(target.path, 1)
        try:
            self.fps = stream.fps
            shown = [p for p in stream.packets() if not p.is_discard and p.pts is not None and p.time_base]
            times = sorted(float(p.pts * p.time_base) for p in shown if p.pts is not None)
        finally:
            stream.close()
        if len(times) == length:
            self.exact = [time - times[0] for time in times]

    def __call__(self, frame: int) -> float | None:
        if self.exact:
            return round(self.exact[frame], 6)
        return round(frame / self.fps, 6) if self.fps else None


def shrunk(image: Image, long_px: int) -> tuple[Image, float]:
    """An image whose long side is at most so many pixels, and its size relative to before."""
    ratio = long_px / max(image.shape[:2])
    if ratio >= 1:
        return image, 1.0
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), ratio


def _chunks(frames: Iterator[tuple[int, Image]]) -> Iterator[list[tuple[int, Image]]]:
    """Some frames at a time, as many as memory bears."""
    chunk: list[tuple[int, Image]] = []
    for each in frames:
        chunk.append(each)
        if (len(chunk) + 1) * each[1].nbytes > CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _box(look: Look, index: int) -> Box:
    x0, y0, x1, y1 = np.asarray(look.faces.boxes[index], np.float64).round(3).tolist()
    return x0, y0, x1, y1
