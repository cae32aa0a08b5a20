"""Exact frames of a video file: opened once, decoded on or from the key frame before, as is shorter.

A frame's index is its position in the order of presentation. Where the packets' time stamps tell that
order (MP4, Matroska) a pass over the packets, without decoding, gives every frame's time, and frames
are matched by it: variable frame rates, B-frames, edit lists and wrong counts come out right. Other
files are decoded once to count their frames, and then always from the start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.video.frame import VideoFrame

from shards.detect.faces import Image
from shards.media.packets import Damage, Packet, PacketTable, Run, is_exact
from shards.media.stream import Stream, UnusableVideoError, to_rgb

__all__ = ["UnusableVideoError", "VideoFile"]

MAX_FRAMES = 4_000_000
"""A day and a half at 30 frames/s; above it lies no clip of a person."""

_TIMED_FORMATS = {"mov", "matroska"}
_ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "png", "ffv1", "prores"}
_EMPTY_PICTURE_BYTES = 16
"""An MPEG-4 packet of fewer bytes may say "not coded", for which the decoder shows nothing."""


class VideoFile:
    """Frames of a local video file, by index.

    Args:
        path: A regular file, or a link to one.
        threads: Of the decoder.

    Raises:
        UnusableVideoError: The file is unreadable, empty, no video, too large, or without frames.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._size: tuple[int, int] | None = None
        self.cut_off: str | None = None
        """That the file ends before its last frame, where its header tells so."""
        self._stream = Stream(path, threads)
        try:
            self._table = self._read_table()
            self.length = self._count() if self._table is None else len(self._table.places)
            """Frames in the file."""
            if not self.length:
                raise UnusableVideoError("has no frames" + (f" ({self.problem})" if self.problem else ""))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    @property
    def problem(self) -> str | None:
        """Why frames could not be read, the last reason met."""
        return self._stream.problem

    @property
    def fps(self) -> float | None:
        """Average frame rate (frames/s), where known."""
        return self._stream.fps

    @property
    def width(self) -> int:
        """Width of the first frame that decodes, upright (pixels).

        Raises:
            UnusableVideoError: None does.
        """
        return self._first_size()[0]

    @property
    def height(self) -> int:
        """Height of the first frame that decodes, upright (pixels).

        Raises:
            UnusableVideoError: None does.
        """
        return self._first_size()[1]

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Image]]:
        """Index and image (RGB, [H, W, 3], upright) of each frame, ascending; one iteration at a time.

        Frames that do not decode are left out, and so are those that may refer to damaged ones: up to
        the next key frame a decoder gives wrong pixels without a word.

        Raises:
            IndexError: An index is not below ``length``.
        """
        wanted = sorted(set(indices))
        if not wanted:
            return
        if wanted[0] < 0 or wanted[-1] >= self.length:
            raise IndexError(f"frames {wanted[0]} to {wanted[-1]} asked of {self.length}")
        if self._table is None:
            yield from self._counted(frozenset(wanted))
            return
        index_of = {self._table.places[index]: index for index in wanted}
        for place, frame in self._found(self._table, deque(self._table.runs(wanted))):
            yield index_of[place], to_rgb(frame)

    def _read_table(self) -> PacketTable | None:
        """Packets of the stream (1 to 3 % of the time of decoding); None where frames must be counted."""
        stream = self._stream
        if not stream.formats & _TIMED_FORMATS or stream.may_have_fields:
            return None
        if stream.codec not in _ONE_FRAME_A_PACKET:
            return None
        packets = []
        for each in stream.packets():
            is_shown = not (each.is_discard or each.is_corrupt)
            packets.append(Packet(each.pts, each.dts, each.is_keyframe, is_shown, each.size))
            _check_count(len(packets))
        if len(packets) < stream.promised:
            self.cut_off = f"the file is cut off: {len(packets)} of {stream.promised} frames are there"
        if stream.codec == "mpeg4" and any(each.size < _EMPTY_PICTURE_BYTES for each in packets):
            return None
        return PacketTable(packets) if is_exact(packets) else None

    def _found(self, table: PacketTable, runs: deque[Run]) -> Iterator[tuple[int, VideoFrame]]:
        """Place and frame of all that the runs want, in the order of presentation, but the damaged."""
        while runs:
            run, damage = runs.popleft(), Damage(table)
            lacking = table.in_order(run.wanted)
            for place, frame in self._decoded(table, run, damage):
                if damage.reaches(place) or place not in lacking:
                    continue
                while lacking[0] != place and (run.first == 0 or damage.reaches(lacking[0])):
                    lacking.popleft()
                if lacking[0] != place:
                    break
                yield lacking.popleft(), frame
            missing = [place for place in lacking if not damage.reaches(place)]
            if missing and run.first > 0:
                # Not all that is marked as a key frame is one: some encoders refresh bit by bit.
                runs.appendleft(table.earlier(run, missing))

    def _decoded(self, table: PacketTable, run: Run, damage: Damage) -> Iterator[tuple[int, VideoFrame]]:
        """Place and frame of what a run wants and the decoder gives; damage is recorded."""
        held: deque[tuple[int, VideoFrame]] = deque()
        for place, frame in self._shown(table, run, damage):
            if place in run.wanted:
                held.append((place, frame))
            # A B-frame refers to a frame shown after it, whose damage is told only then.
            while held and table.is_settled(held[0][0], place):
                yield held.popleft()
        yield from held

    def _shown(self, table: PacketTable, run: Run, damage: Damage) -> Iterator[tuple[int, VideoFrame]]:
        """Place and frame of all that a run decodes."""
        for place, packet in chain(self._read(table, run), [(run.last, None)]):
            if packet is not None and damage.reaches(place):
                continue
            frames = self._stream.decode(packet, is_needed=place in run.wanted)
            if frames is None:  # Of several threads the last may be meant by it.
                damage.add(max(run.first, place - self._stream.threads + 1))
            for frame in frames or ():
                shown = table.place_at(frame.pts)
                if shown is not None:
                    if frame.is_corrupt:
                        damage.add(shown)
                    yield shown, frame

    def _read(self, table: PacketTable, run: Run) -> Iterator[tuple[int, av.Packet]]:
        """The packets that a run needs, with their places."""
        for packet in self._packets_from(table, run.first):
            place = table.place_at(packet.pts)
            if place is not None and table.is_needed(place, run):
                yield place, packet
            if place is not None and place >= run.last:
                return

    def _packets_from(self, table: PacketTable, place: int) -> Iterator[av.Packet]:
        """Packets from a place on, or from before it."""
        if self._stream.seek(*table.times(place)):
            packets = self._stream.packets()
            head = next(packets, None)
            landed = None if head is None else table.place_at(head.pts)
            if head is not None and landed is not None and landed <= place:
                return chain([head], packets)
        self._stream.rewind()
        return self._stream.packets()

    def _in_sequence(self) -> Iterator[tuple[VideoFrame, bool]]:
        """Every frame from the start, and whether it is damaged or may refer to one that is."""
        is_damaged = False
        for packet in chain(self._stream.packets(), [None]):
            frames = self._stream.decode(packet)
            is_damaged |= frames is None
            for frame in frames or ():
                is_damaged = frame.is_corrupt or (is_damaged and not frame.key_frame)
                yield frame, is_damaged

    def _count(self) -> int:
        count = 0
        self._stream.rewind()
        for count, _ in enumerate(self._in_sequence(), 1):
            _check_count(count)
        return count

    def _counted(self, wanted: frozenset[int]) -> Iterator[tuple[int, Image]]:
        self._stream.rewind()
        for index, (frame, is_damaged) in enumerate(islice(self._in_sequence(), max(wanted) + 1)):
            if index in wanted and not is_damaged:
                yield index, to_rgb(frame)

    def _first_size(self) -> tuple[int, int]:
        if self._size is None:
            first = next(self.frames(range(self.length)), None)
            if first is None:
                raise UnusableVideoError(self.problem or "does not decode")
            self._size = first[1].shape[1], first[1].shape[0]
        return self._size


def _check_count(frames: int) -> None:
    if frames > MAX_FRAMES:
        raise UnusableVideoError(f"has over {MAX_FRAMES} frames")
