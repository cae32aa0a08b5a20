"""Which frames of a video to read: pure functions of its length."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from typing import Literal

import numpy as np

How = Literal["uniform", "random", "stride"]


def pick(length: int, count: int, how: How, *, seed_text: str = "", stride: int = 1) -> list[int]:
    """At most ``count`` frame indices of a video of ``length`` frames, ascending and unique.

    Args:
        length: Frames in the video; 0 gives none.
        count: Frames wanted; a shorter video gives all it has.
        how: ``uniform``: equal steps from the first frame to the last, as DeepfakeBench; ``random``:
            without replacement, a function of ``seed_text`` and ``length`` alone, and nearly the same
            draw for two lengths, so that a real and its fakes, which share the text, share frames;
            ``stride``: every ``stride``-th frame from the first.
        seed_text: Key of the random draw, as the seed and the group.
        stride: Step in frames.

    Raises:
        ValueError: ``count`` or ``stride`` is below 1, or ``length`` negative.
    """
    if length < 0 or count < 1 or stride < 1:
        raise ValueError(f"length {length}, count {count}, stride {stride}: give 0, 1, 1 or more")
    if how == "stride":
        return list(range(0, length, stride))[:count]
    if count >= length:
        return list(range(length))
    if how == "uniform":
        steps = max(count - 1, 1)
        return [place * (length - 1) // steps for place in range(count)]
    # The frames of smallest hash: a frame's rank hardly depends on how many others there are.
    return sorted(np.argsort(_hashes(length, seed_text), kind="stable")[:count].tolist())


def outward(length: int) -> Iterator[int]:
    """Every index once: the middle first, then each time the one farthest from all before.

    The order in which GenD tries frames until it has enough faces (arXiv 2508.06248); of equally far
    ones the first. Lazy: n indices of a video of any length take O(n log n).
    """
    if length < 1:
        return
    middle = length // 2
    yield middle
    gaps: list[tuple[int, int, int, int]] = []
    _push(gaps, -1, middle, length)
    _push(gaps, middle, length, length)
    while gaps:
        _, index, left, right = heapq.heappop(gaps)
        yield index
        _push(gaps, left, index, length)
        _push(gaps, index, right, length)


def _push(gaps: list[tuple[int, int, int, int]], left: int, right: int, length: int) -> None:
    """Adds the untried frames between two tried ones; -1 and ``length`` are no frames, so untried."""
    if right - left < 2:
        return
    if left < 0:
        distance, index = right, 0
    elif right == length:
        distance, index = length - 1 - left, length - 1
    else:
        distance, index = (right - left) // 2, (left + right) // 2
    heapq.heappush(gaps, (-distance, index, left, right))


def _hashes(length: int, text: str) -> np.ndarray:
    """splitmix64 of each index [length], keyed by a text: the same on every machine and version."""
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    value = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
