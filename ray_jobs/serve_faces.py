"""The faces of a file that a client sent: checked before it is decoded, found as predict.py finds them."""

from __future__ import annotations

import base64
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfdet.data.decode import Pixels
from dfdet.schema import CropRecipe
from dfdet.serving.answer import Asked, FoundFace, FoundFaces
from dfdet.serving.bundle import Bundle
from dfdet.serving.content import Kind, check_image, kind_of
from dfdet.serving.limits import Limits
from dfdet.serving.refused import RefusedError
from ray_jobs.own_faces import Finder, Found, Looking, shrunk
from ray_jobs.own_files import Target
from shards.detect import DetectorOptions, open_detector
from shards.detect.faces import Detector, DetectorError, Faces, Image
from shards.media.decode import encode
from shards.media.stream import Stream, UnusableVideoError

MAX_FACES = 32
"""Faces of a frame that are looked at, the surest: each takes some hundred kilobytes."""
MAX_FPS = 240
"""Frames that a second of the allowed length may hold."""
GRACE_S = 5.0
"""What is not over so long after its time ends with its process: a decoder cannot be interrupted."""
THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Setting:
    """All that a process needs to find faces; picklable."""

    bundle: Bundle
    limits: Limits
    recipe: CropRecipe | None
    """How faces are cut; None: files are ready crops, always."""
    detector: DetectorOptions | None


class FaceFinder:
    """Finds faces in files, one at a time; opens the detector once.

    Raises:
        WeightsError: This machine has another detector than the driver.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._detector = open_detector(setting.detector) if setting.detector else None

    def __call__(self, data: bytes, asked: Asked, limit_s: float) -> FoundFaces:
        """The faces of a file.

        Args:
            data: Its content.
            asked: By the client.
            limit_s: Time for it (s). A decoder that hangs long after it ends this process.

        Raises:
            RefusedError: It cannot be decoded, is too large, or takes too long.
        """
        kind = kind_of(data)
        if kind == "image":
            check_image(data, self.setting.limits.max_pixels)
        deadline = time.monotonic() + limit_s
        with _ended_after(limit_s + GRACE_S), _file(data) as path:
            if kind == "video":
                check_video(path, self.setting.limits)
            found = self._found(Target(path, kind, len(data)), asked, deadline)
        return self._told(kind, found, asked)

    def _found(self, target: Target, asked: Asked, deadline: float) -> Found:
        setting = self.setting
        if not asked.ready and setting.recipe is None:
            raise RefusedError(
                422, "bad_parameter", "crops: this server finds no faces; send face crops, crops=true"
            )
        recipe = setting.bundle.crop if asked.ready or setting.recipe is None else setting.recipe
        detector = None if asked.ready or self._detector is None else _Bounded(self._detector, deadline)
        looking = Looking(recipe, asked.frames, asked.everyone, asked.ready)
        try:
            return Finder(looking, detector)(target)
        except UnusableVideoError as error:
            # What follows the colon may quote the file.
            raise RefusedError(400, "undecodable", f"the file {str(error).partition(':')[0]}") from error
        except DetectorError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise RefusedError(504, "timeout", str(error.__cause__)) from error
            raise
        except MemoryError as error:
            raise RefusedError(413, "too_large", "the file does not fit into memory") from error

    def _told(self, kind: Kind, found: Found, asked: Asked) -> FoundFaces:
        recipe = self.setting.recipe
        scale = self.setting.bundle.crop.scale if asked.ready or recipe is None else recipe.scale
        faces = []
        for seen in found.seen:
            cut = self.setting.bundle.cut(seen.crop, scale)
            small = thumbnail(cut) if asked.thumbnails else None
            faces.append(FoundFace(seen.face, seen.frame, seen.time_s, seen.box, cut, small))
        return FoundFaces(kind, found.read, found.reason, faces)


def check_video(path: Path, limits: Limits) -> None:
    """Refuses, by its packets and without decoding, a video that is too long or whose frames are too large.

    Raises:
        RefusedError: 413, or 400 where it is none.
    """
    try:
        stream = Stream(path, 1)
    except UnusableVideoError as error:
        raise RefusedError(400, "undecodable", f"the file {str(error).partition(':')[0]}") from error
    frames, first, last = 0, float("inf"), float("-inf")
    try:
        for packet in stream.packets():
            size = packet.stream.codec_context
            if frames == 0 and size.width * size.height > limits.max_pixels:
                told = (
                    f"frames of {size.width}x{size.height} px; at most {limits.max_pixels} pixels are taken"
                )
                raise RefusedError(413, "too_many_pixels", told)
            frames += 1
            if packet.pts is not None and packet.time_base:
                time_s = float(packet.pts * packet.time_base)
                first, last = min(first, time_s), max(last, time_s)
            if last - first > limits.max_seconds or frames > MAX_FPS * limits.max_seconds:
                raise RefusedError(413, "too_long", f"the video is longer than {limits.max_seconds:g} s")
    finally:
        stream.close()


def thumbnail(crop: Pixels) -> str:
    """A small JPEG as a data URL."""
    data = encode(shrunk(crop, THUMBNAIL_PX)[0], "jpg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


class _Bounded:
    """A detector that stops when time is up, and gives no crowd.

    Args:
        detector: The detector.
        deadline: By the monotonic clock (s).
    """

    def __init__(self, detector: Detector, deadline: float) -> None:
        self._detector, self._deadline = detector, deadline
        self.name, self.weights_sha256 = detector.name, detector.weights_sha256

    def __call__(self, frames: Sequence[Image]) -> list[Faces]:
        return [self._find(frame) for frame in frames]

    def _find(self, frame: Image) -> Faces:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the faces were not found in time; send less, or ask for fewer frames")
        return Faces(*(part[:MAX_FACES] for part in self._detector([frame])[0]))


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """A file of this content; on Linux without a name, so that nothing is left even by a killed process."""
    unnamed = Path("/proc/self/fd")
    with tempfile.TemporaryFile() if unnamed.is_dir() else tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield unnamed / str(file.fileno()) if unnamed.is_dir() else Path(file.name)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
