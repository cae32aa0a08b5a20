"""A video with the boxes and scores of its faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from dfdet.errors import DfdetError
from dfdet.prediction.pictures import Marked, Pixels
from dfdet.prediction.records import Frame

CODECS = ("libx264", "libopenh264", "mpeg4")
"""H.264 where FFmpeg was built with it."""


def write_film(path: Path, frames: Iterable[Pixels], fps: float) -> str:
    """Writes an MP4, which appears whole or not at all; gives the codec.

    Args:
        path: Where to.
        frames: Of one size; an odd last row or column is left out.
        fps: Frames a second.

    Raises:
        DfdetError: FFmpeg has none of the codecs, or cannot write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    codec = _codec()
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            assert isinstance(stream, VideoStream)
            stream.pix_fmt = "yuv420p"
            if codec == "mpeg4":
                stream.bit_rate = 8_000_000
            for image in frames:
                if not stream.codec_context.is_open:
                    stream.width, stream.height = image.shape[1] // 2 * 2, image.shape[0] // 2 * 2
                even = np.ascontiguousarray(image[: stream.height, : stream.width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, "rgb24")))
            container.mux(stream.encode(None))
        os.replace(temporary, path)  # noqa: PTH105
    except av.FFmpegError as error:
        raise DfdetError(f"{path}: cannot be written ({error.strerror}); leave out --video") from error
    finally:
        temporary.unlink(missing_ok=True)
    return codec


def _codec() -> str:
    for name in CODECS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise DfdetError(f"--video: FFmpeg was built without {', '.join(CODECS)}; leave it out")


def marks_between(frames: Sequence[Frame], positions: Sequence[int]) -> Callable[[int], list[Marked]]:
    """Boxes at any frame: those of scored frames, and on the way from one to the next of the same face.

    Between two scored frames that follow each other the box moves in a straight line and the score is
    that of the nearer one; nothing is drawn where the face is not in both, or jumps by its own width.

    Args:
        frames: What was scored.
        positions: Frames that were looked at, ascending.
    """
    following = dict(pairwise(positions))
    by_place = {(each.face, each.frame): each for each in frames if each.box is not None}
    faces = sorted({each.face for each in frames})
    looked = np.array(positions, np.int64)

    def at(frame: int) -> list[Marked]:
        number = int(np.searchsorted(looked, frame, side="right")) - 1
        if number < 0:
            return []
        first = int(looked[number])
        pairs = [
            (by_place.get((face, first)), by_place.get((face, following.get(first, -1)))) for face in faces
        ]
        return [mark for one, other in pairs if one and (mark := _between(one, other, frame))]

    return at


def _between(first: Frame, then: Frame | None, frame: int) -> Marked | None:
    if frame == first.frame:
        assert first.box is not None
        return Marked(first.box, first.score, _label(first))
    if then is None:
        return None
    start, end = np.array(first.box), np.array(then.box)
    if np.abs(end - start).max() > max(start[2] - start[0], 1.0):
        return None
    share = (frame - first.frame) / (then.frame - first.frame)
    x0, y0, x1, y1 = (start + (end - start) * share).tolist()
    near = first if share < 0.5 else then
    return Marked((x0, y0, x1, y1), near.score, _label(near), sure=False)


def _label(frame: Frame) -> str:
    return f"#{frame.face} {frame.score:.3f}"
