"""The packets of a video stream, and which of them to decode for a frame: pure, without a decoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

FEWEST_SKIPPED = 3
"""A seek must save that many packets; in a 640x480 H.264 stream it costs about as much as one."""


class Packet(NamedTuple):
    """A packet as the demuxer tells it; times are in the stream's time base."""

    pts: int | None
    dts: int | None
    is_key: bool
    is_shown: bool
    """False outside of the edit list (decoded for others to refer to, then discarded), or cut short."""
    size: int
    """Bytes."""


class Run(NamedTuple):
    """Packets to decode in one go."""

    first: int
    """Key frame to seek to (place in decoding order)."""
    last: int
    """Place of the last packet needed, after which the decoder is drained."""
    wanted: frozenset[int]
    """Places of the frames that are asked for."""


@dataclass
class PacketTable:
    """Packets in decoding order; a *place* counts in it, an *index* counts frames as shown.

    Time stamps must be there and unique: :func:`is_exact` tells.
    """

    packets: Sequence[Packet]
    places: list[int] = field(init=False)
    """Place of each frame index."""
    starts: list[int] = field(init=False)
    """Key frame that the decoding of each place must start at."""

    def __post_init__(self) -> None:
        times = [_time(packet) for packet in self.packets]
        shown = [place for place, packet in enumerate(self.packets) if packet.is_shown]
        self.places = sorted(shown, key=times.__getitem__)
        self.starts = []
        keys: list[int] = []
        for place, packet in enumerate(self.packets):
            if packet.is_key:
                keys.append(place)
            self.starts.append(_start(keys, times, place))
        self._place_of = {time: place for place, time in enumerate(times)}
        self._latest = list(accumulate(times, max))

    def place_at(self, pts: int | None) -> int | None:
        """Place of a packet or frame by its presentation time; None if it is not in the table."""
        return None if pts is None else self._place_of.get(pts)

    def times(self, place: int) -> tuple[int, int | None]:
        """Times of presentation and of decoding."""
        return _time(self.packets[place]), self.packets[place].dts

    def is_settled(self, place: int, shown: int) -> bool:
        """Whether all that a frame may refer to came out of the decoder, once another was shown."""
        return self._latest[place] <= _time(self.packets[shown])

    def runs(self, indices: Sequence[int]) -> list[Run]:
        """What to decode for ascending frame indices: on from the last one, or from a key frame."""
        runs: list[tuple[int, int, list[int]]] = []
        for index in indices:
            place = self.places[index]
            start = self.starts[place]
            if runs and start <= runs[-1][1] + FEWEST_SKIPPED:
                first, last, wanted = runs[-1]
                wanted.append(place)
                # What is shown later may stand before, so that decoding must start earlier.
                runs[-1] = min(first, start), max(last, place), wanted
            else:
                runs.append((start, place, [place]))
        return [Run(first, last, frozenset(wanted)) for first, last, wanted in runs]

    def earlier(self, run: Run, missing: Iterable[int]) -> Run:
        """The run again for what it did not give, from about twice as far back."""
        return Run(self.starts[max(0, 2 * run.first - run.last - 1)], run.last, frozenset(missing))

    def in_order(self, places: Iterable[int]) -> deque[int]:
        """Places in the order they are shown."""
        return deque(sorted(places, key=lambda place: _time(self.packets[place])))

    def is_needed(self, place: int, run: Run) -> bool:
        """Whether a packet is to be decoded in a run; those that refer to what was skipped are not."""
        return run.first <= place <= run.last and (run.first == 0 or self.starts[place] >= run.first)


class Damage:
    """Which frames of a run are spoilt: from a damaged one on, all that start at the same key frame."""

    def __init__(self, table: PacketTable) -> None:
        self._starts = table.starts
        self._first: dict[int, int] = {}

    def add(self, place: int) -> None:
        """Records a damaged packet or frame."""
        start = self._starts[place]
        self._first[start] = min(place, self._first.get(start, place))

    def reaches(self, place: int) -> bool:
        """Whether a frame may refer to a damaged one."""
        return place >= self._first.get(self._starts[place], place + 1)


def is_exact(packets: Sequence[Packet]) -> bool:
    """Whether the packets' times tell the order of the frames."""
    times = [packet.pts for packet in packets]
    return None not in times and len(set(times)) == len(times)


def _time(packet: Packet) -> int:
    assert packet.pts is not None, "ask is_exact first"
    return packet.pts


def _start(keys: Sequence[int], times: Sequence[int], place: int) -> int:
    """The last key frame that is neither decoded nor shown after a packet.

    Packets that follow a key frame and are shown before it (open groups of pictures) refer to the
    group before.
    """
    for key in reversed(keys):
        if times[key] <= times[place]:
            return key
    return 0
