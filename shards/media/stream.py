"""A video stream of a local file through FFmpeg: its packets, its decoder, upright RGB images.

Whatever a file holds, no other file and no URL is opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from shards.detect.faces import Image
from shards.media.decode import MAX_PIXELS
from shards.media.reach import check_reach

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif,mjpeg"
)
"""Demuxers that read the file alone; playlists (concat, hls, dash, image2) are not among them."""

_SKIPPING = {"h264", "hevc"}
"""Decoders that heed skip_frame packet by packet; that of AV1 keeps to what it was opened with."""


class UnusableVideoError(Exception):
    """Footage that cannot be read; the text is the reason, in one line."""


class Stream:
    """The largest video stream of a file, and its decoder.

    Args:
        path: A regular file, or a link to one. It is never read as a URL.
        threads: Of the decoder.

    Raises:
        UnusableVideoError: The file is unreadable, empty, no video, without a video stream, or its
            frames are too large.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.problem: str | None = None
        """Why something could not be read or decoded, the last reason met."""
        self.threads = threads
        self._file = open_regular(path)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    @property
    def formats(self) -> frozenset[str]:
        """FFmpeg's names of the container format."""
        return frozenset(self._container.format.name.split(","))

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self._codec.name

    @property
    def may_have_fields(self) -> bool:
        """Whether the frames are interlaced: each may come in two packets."""
        return int(self._codec.field_order) > 1  # 0 is unknown, 1 progressive.

    @property
    def fps(self) -> float | None:
        """Average frame rate (frames/s), where known."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    @property
    def promised(self) -> int:
        """Frames that the header tells of; 0 where it tells nothing."""
        return int(self._stream.frames)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        self._file.close()

    def rewind(self) -> None:
        """Back to the first packet, by reading the header again: that also works without an index."""
        self._container.close()
        self._open()

    def seek(self, pts: int, dts: int | None) -> bool:
        """To the packet of these times or before; False where the format fails to."""
        with suppress(av.FFmpegError):
            # The index of MP4 has decoding times, that of Matroska presentation times.
            time = dts if dts is not None and "mov" in self.formats else pts
            self._container.seek(time, stream=self._stream)
            return True
        return False

    def packets(self) -> Iterator[av.Packet]:
        """Packets from the present position to the end, or to where the file is broken."""
        try:
            # An empty packet would tell the decoder that the stream ends.
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
        except Exception as error:  # noqa: BLE001 - PyAV lets out more than its own, as when streams appear.
            self.problem = f"breaks off: {_reason(error)}"

    def decode(self, packet: av.Packet | None, *, is_needed: bool = True) -> list[VideoFrame] | None:
        """Frames that a packet, or the end of the stream (None), brings out; None if it is damaged.

        Args:
            packet: The next in order.
            is_needed: If not, its frame is decoded only where others may refer to it: 1.3 times as
                fast over the streams of x264, and the other frames stay bit-equal.
        """
        if self.codec in _SKIPPING:
            self._codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
        try:
            return self._codec.decode(packet)
        except av.FFmpegError as error:
            self.problem = f"does not decode: {_reason(error)}"
            return None

    def _open(self) -> None:
        self._demux({"max_pixels": str(MAX_PIXELS)})
        if not self._codec.width:
            # FFmpeg forgets a size above max_pixels: look again without decoding anything.
            self._container.close()
            self._demux({"skip_frame": "all"})
        width, height = self._codec.width, self._codec.height
        if width * height > MAX_PIXELS:
            raise UnusableVideoError(f"frames of {width}x{height} px exceed {MAX_PIXELS // 10**6} megapixels")
        self._codec.thread_count = self.threads
        self._codec.thread_type = "AUTO"
        self._codec.options = {"max_pixels": str(MAX_PIXELS)}  # The size may change on the way.

    def _demux(self, probing: dict[str, str]) -> None:
        """Reads the header; the options are those of the decoders that help to understand it."""
        self._file.seek(0)
        try:
            self._container: InputContainer = av.open(
                self._file,
                "r",
                metadata_errors="replace",
                buffer_size=1 << 16,
                options=probing,
                container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "none"},
            )
        except (av.FFmpegError, ValueError) as error:
            raise UnusableVideoError(f"is no video: {_reason(error)}") from error
        streams = [each for each in self._container.streams.video if _is_footage(each)]
        if not streams:
            raise UnusableVideoError("has no video stream")
        self._stream = max(streams, key=lambda each: each.codec_context.width * each.codec_context.height)
        self._codec = self._stream.codec_context
        for each in self._container.streams:
            if each is not self._stream:
                each.discard = Discard.all


def to_rgb(frame: VideoFrame) -> Image:
    """Upright RGB image [H, W, 3]; a display matrix is rounded to a quarter turn, perhaps mirrored.

    The stream's own matrix and range give the colours, BT.601 where it names none; the pixels are
    those that OpenCV gives.
    """
    image = frame.to_ndarray(format="rgb24", threads=1)
    sides: dict = frame.side_data  # type: ignore[assignment]  # The stubs know motion vectors only.
    if "DISPLAYMATRIX" in sides:
        matrix = np.frombuffer(bytes(sides["DISPLAYMATRIX"]), np.int32).reshape(3, 3)
        # A pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift: matrix [[a, b], [c, d]].
        (a, b), (c, d) = matrix[:2, :2].astype(np.int64).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.transpose(1, 0, 2), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def open_regular(path: Path) -> IO[bytes]:
    """A file, opened and then judged, without waiting for the writer of a pipe.

    Raises:
        UnusableVideoError: It cannot be read, is empty, or no regular file.
        StorageAwayError: It cannot be reached for the moment.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            check_reach(path, error)
        raise UnusableVideoError(f"cannot be read: {_reason(error)}") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise UnusableVideoError("is empty" if stat.S_ISREG(status.st_mode) else "is no regular file")


def _is_footage(stream: VideoStream) -> bool:
    """Not the cover of an album, and of a known codec."""
    return stream.codec_context is not None and not stream.disposition & Disposition.attached_pic


def _reason(error: BaseException) -> str:
    """One line, without the number and the file name that FFmpeg adds."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__
