"""Clips as units of a plan: frames of one video, spread over it, that stay together on one rank.

A video of n frames gives m = ceil(n / T) clips of T slots. Slot i takes one of the frames i m to
i m + m - 1 in order of time, and each clip another one, so an epoch has every frame exactly once; a slot
that is left without a frame repeats the first of its clip and is not valid. Which clip takes which frame
is turned from epoch to epoch by a hash.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dfdet.data.hashing import chain
from dfdet.data.pairing import Ids, Units, ranges_of, row_type

_TURN = 5
"""Purpose of the hash, so that no two draws share a stream; 1 to 4 are those of order and pairs."""


class VideoColumns(Protocol):
    """What clips need of an index."""

    @property
    def video(self) -> NDArray[Any]:
        """Code of the video, [n]."""

    @property
    def frame(self) -> NDArray[Any]:
        """Frame in the video, [n]."""


@dataclass(frozen=True, eq=False)
class Clips(Units):
    """The clips of all videos, numbered video by video."""

    frames: int = 0
    """Slots of a clip, T."""
    rows: NDArray[Any] | None = None
    """Sample ids by video, then frame, [n]."""
    first_row: Ids | None = None
    """Place in ``rows`` of each video's first frame, and the end, [videos + 1]."""
    first_clip: Ids | None = None
    """Number of each video's first clip, and the end, [videos + 1]."""
    turn: tuple[int, int] | None = None
    """Seed and epoch that turn the frames; None for frame j to clip j."""

    def first(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """First frame of each clip, [u]."""
        return self._samples(numbers, 1)[0][:, 0]

    def samples(self, numbers: NDArray[Any]) -> Ids:
        """Sample ids of clips, in order of time and then padding, [u, T] int64."""
        return self._samples(numbers, self.frames)[0]

    def valid(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of them are frames of their own, [u, T]."""
        return self._samples(numbers, self.frames)[1]

    def _samples(self, numbers: NDArray[Any], slots: int) -> tuple[Ids, NDArray[np.bool_]]:
        """Sample ids of the first slots, and whether those have a frame, [u, slots] each."""
        assert self.rows is not None and self.first_row is not None and self.first_clip is not None
        video = np.searchsorted(self.first_clip, numbers, side="right") - 1
        low = self.first_row[video][:, None]
        frames = self.first_row[video + 1][:, None] - low
        clips = (self.first_clip[video + 1] - self.first_clip[video])[:, None]
        slot = np.arange(slots)[None]
        turned = (numbers - self.first_clip[video])[:, None]
        if self.turn is not None:
            hashed = chain(*self.turn, _TURN, video[:, None], slot)
            turned = (turned + (hashed % clips.astype(np.uint64)).astype(np.int64)) % clips
        place = slot * clips + turned
        valid = place < frames
        # slot 0 always has a frame: a video has no more clips than frames
        found = self.rows[low + np.where(valid, place, place[:, :1])]
        return found.astype(np.int64), valid


def clips_of(index: VideoColumns, frames: int, seed: int, epoch: int) -> Clips:
    """The clips of an epoch of training, of ``frames`` slots each."""
    return _clips(index, frames, (seed, epoch))


def clips_in_order(index: VideoColumns, frames: int) -> Clips:
    """The clips of an evaluation: the same frames together whenever it is asked."""
    return _clips(index, frames, None)


def count_clips(index: VideoColumns, frames: int) -> int:
    """Clips of any epoch."""
    return int((-(-np.bincount(index.video) // frames)).sum())


def _clips(index: VideoColumns, frames: int, turn: tuple[int, int] | None) -> Clips:
    counts = np.bincount(index.video)
    first_row = np.concatenate([[0], np.cumsum(counts)])
    first_clip = np.concatenate([[0], np.cumsum(-(-counts // frames))])
    rows = _by_video(index)
    return Clips(int(first_clip[-1]), None, None, frames, rows, first_row, first_clip, turn)


def _by_video(index: VideoColumns) -> NDArray[Any]:
    """Sample ids by video, then frame; by ranges of videos, as pairs are sorted by ranges of groups."""
    if not len(index.video):
        return np.zeros(0, np.int64)
    every = np.arange(len(index.video), dtype=row_type(len(index.video)))
    rows, starts = ranges_of(index.video, every)
    for low, high in itertools.pairwise(starts.tolist()):
        some = rows[low:high]
        rows[low:high] = some[np.lexsort((index.frame[some], index.video[some]))]
    return rows


class Times:
    """When a frame lies in its video: 0 at the first frame that the index has of it, 1 at the last.

    Args:
        index: VideoColumns of the data.
    """

    def __init__(self, index: VideoColumns) -> None:
        self._video, self._frame = index.video, index.frame
        videos = int(index.video.max(initial=-1)) + 1
        last = np.full(videos, -1, np.int64)
        np.maximum.at(last, index.video, index.frame)
        self._first = last.copy()
        np.minimum.at(self._first, index.video, index.frame)
        self._span = np.maximum(last - self._first, 1)

    def __call__(self, ids: Ids) -> NDArray[np.float32]:
        """Times of samples, [u] (0 to 1)."""
        video = self._video[ids]
        return ((self._frame[ids] - self._first[video]) / self._span[video]).astype(np.float32)
