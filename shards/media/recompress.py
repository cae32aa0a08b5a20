"""Footage compressed anew by a video codec, as by a platform that it is uploaded to, and decoded again.

Frames go from the encoder straight into a decoder. No file is written, so nothing is left by a kill, and
no more frames are held than the encoder looks ahead, however long the video is. One thread and fixed
presets give equal bytes in each run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from dfdet.errors import InputError
from dfdet.schema import Recompression
from shards.detect.faces import Image
from shards.media.footage import Footage
from shards.media.priority import without_real_time
from shards.media.stream import UnusableVideoError, to_rgb

__all__ = ["Recompressor", "encoder_text", "recompressed"]

# What is fatal only: SVT-AV1 writes a page to stderr for each video, and an error if its end is not needed.
os.environ.setdefault("SVT_LOG", "0")

_TICK = Fraction(1, 25)
"""Seconds of a frame: at 25 frames/s x264's rate factor means what it says, whatever the source's rate."""
_VERSION_BYTES = {"h264": b"x264 - core ", "h265": b"x265 (build "}
"""What these encoders write into a stream before their version."""


class _Codec(NamedTuple):
    encoder: str
    decoder: str
    options: dict[str, str]


_CODECS = {
    "h264": _Codec("libx264", "h264", {"preset": "medium", "x264-params": "cpu-independent=1"}),
    "h265": _Codec(
        "libx265", "hevc", {"preset": "medium", "x265-params": "pools=none:frame-threads=1:log-level=error"}
    ),
    "av1": _Codec("libsvtav1", "libdav1d", {"preset": "8", "svtav1-params": "lp=1"}),
    "vp9": _Codec("libvpx-vp9", "vp9", {"deadline": "good", "cpu-used": "4", "b": "0"}),
}


class Recompressor:
    """An encoder with a decoder behind it; frames come out in the order they went in, each once.

    Images of odd width or height are continued by a row or column for 4:2:0, which is cut off again.

    Args:
        how: Codec and rate factor.
        width: Of all images (pixels).
        height: Of all images (pixels).

    Raises:
        UnusableVideoError: The codec cannot encode this size, or is not there.
    """

    def __init__(self, how: Recompression, width: int, height: int) -> None:
        self.how, self.width, self.height = how, width, height
        self.bytes = 0
        """Of the compressed frames so far."""
        self.version = ""
        """What the encoder wrote of itself, if it did."""
        self._put = self._got = 0
        try:
            self._encoder, self._decoder = _open(how, width + width % 2, height + height % 2)
        except (av.FFmpegError, ValueError) as error:
            raise UnusableVideoError(
                f"cannot be re-compressed to {how} at {width}x{height} px: {_reason(error)}"
            ) from error

    def push(self, image: Image) -> Iterator[_Decoded]:
        """Encodes an image (RGB, [H, W, 3]); gives the frames that come out by now.

        Raises:
            UnusableVideoError: The image has another size, or encoder or decoder fail.
        """
        if image.shape[:2] != (self.height, self.width):
            raise UnusableVideoError(
                f"cannot be re-compressed to {self.how}: its frames change from {self.width}x{self.height} px"
                f" to {image.shape[1]}x{image.shape[0]}"
            )
        even = np.pad(image, ((0, self.height % 2), (0, self.width % 2), (0, 0)), "edge")
        frame = av.VideoFrame.from_ndarray(even, "rgb24").reformat(format="yuv420p", threads=1)
        frame.pts, frame.time_base = self._put, _TICK
        self._put += 1
        yield from self._through(frame)

    def end(self) -> Iterator[_Decoded]:
        """The frames that are left.

        Raises:
            UnusableVideoError: A frame is lost, or encoder or decoder fail.
        """
        yield from self._through(None)
        if self._got != self._put:
            raise self._lost()

    def _through(self, frame: av.VideoFrame | None) -> Iterator[_Decoded]:
        try:
            packets = self._encoder.encode(frame)
            for packet in [*packets, None] if frame is None else packets:
                self._note(packet)
                for shown in self._decoder.decode(packet):
                    if shown.pts != self._got:
                        raise self._lost()
                    self._got += 1
                    yield _Decoded(self._got - 1, shown, self.width, self.height)
        except (av.FFmpegError, ValueError) as error:
            raise UnusableVideoError(f"cannot be re-compressed to {self.how}: {_reason(error)}") from error

    def _note(self, packet: av.Packet | None) -> None:
        if packet is None:
            return
        if not self.bytes:
            self.version = _version(self.how.codec, bytes(packet))
        self.bytes += packet.size

    def _lost(self) -> UnusableVideoError:
        return UnusableVideoError(
            f"cannot be re-compressed to {self.how}: frame {self._got} of {self._put} came out as another"
        )


@dataclass(frozen=True)
class _Decoded:
    """A frame as it came out; its pixels are made only where they are wanted."""

    number: int
    """Of the image among those put in."""
    frame: av.VideoFrame
    width: int
    height: int

    def image(self) -> Image:
        """RGB [H, W, 3]."""
        return np.ascontiguousarray(to_rgb(self.frame)[: self.height, : self.width])


def recompressed(
    footage: Footage, how: Recompression, positions: Collection[int]
) -> Iterator[tuple[int, Image]]:
    """Position and image (RGB, [H, W, 3], upright) of frames after re-compression, ascending.

    Every frame of the footage is encoded, one to one, up to what the last of the positions needs; those
    that do not decode are left out.

    Raises:
        UnusableVideoError: Encoding fails, or the frames change in size on the way.
    """
    missing = set(positions)
    places: dict[int, int] = {}
    for decoded in _all(footage, how, places):
        position = places.pop(decoded.number)
        if position in missing:
            missing.remove(position)
            yield position, decoded.image()
        if not missing:
            return


def _all(footage: Footage, how: Recompression, places: dict[int, int]) -> Iterator[_Decoded]:
    """Every frame; what position an image has is told in ``places`` when it goes in."""
    coder: Recompressor | None = None
    for number, (position, image) in enumerate(footage.frames(range(footage.length))):
        coder = coder or Recompressor(how, image.shape[1], image.shape[0])
        places[number] = position
        yield from coder.push(image)
    if coder is not None:
        yield from coder.end()


def encoder_text(how: Recompression) -> str:
    """The encoder with its version and options: equal texts give equal bytes.

    x264 and x265 write their build into a stream; for others libavcodec's version stands.

    Raises:
        InputError: This build of FFmpeg lacks the encoder.
    """
    codec = _CODECS[how.codec]
    options = " ".join(f"{name}={value}" for name, value in (codec.options | {"crf": str(how.crf)}).items())
    try:
        coder = Recompressor(how, 64, 64)
        for _ in chain(coder.push(np.zeros((64, 64, 3), np.uint8)), coder.end()):
            pass
    except UnusableVideoError as error:
        raise InputError(
            f"--recompress {how}: {codec.encoder} does not work here ({error}); install PyAV from its wheels,"
            " or take another codec"
        ) from error
    version = coder.version or "libavcodec {}.{}.{}".format(*av.library_versions["libavcodec"])
    return f"{codec.encoder}, {version}, {options}"


def _open(how: Recompression, width: int, height: int) -> tuple[VideoCodecContext, VideoCodecContext]:
    codec = _CODECS[how.codec]
    encoder = av.CodecContext.create(codec.encoder, "w")
    decoder = av.CodecContext.create(codec.decoder, "r")
    assert isinstance(encoder, VideoCodecContext) and isinstance(decoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = _TICK, 1 / _TICK
    encoder.options = codec.options | {"crf": str(how.crf)}
    encoder.thread_count = decoder.thread_count = 1
    with without_real_time():
        encoder.open()
    return encoder, decoder


def _version(codec: str, data: bytes) -> str:
    """As ``x264 - core 165``; empty where the stream does not tell."""
    mark = _VERSION_BYTES.get(codec)
    place = data.find(mark) if mark else -1
    if place < 0:
        return ""
    text = data[place : place + 80].split(b"\0")[0].decode("ascii", "replace")
    return text.split(" - H.26")[0].split(":[")[0]


def _reason(error: BaseException) -> str:
    """One line, without what FFmpeg was called with."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__
