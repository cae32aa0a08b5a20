"""Random numbers by name, from a hash: equal on any machine, build and number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class Draws:
    """The random numbers of one thing; each has a name, so that a further one moves no other.

    Args:
        what: What the numbers belong to, as a seed, a key and a number.
    """

    def __init__(self, *what: object) -> None:
        self._what = "\0".join(map(str, what))

    def uniform(self, name: str, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * int.from_bytes(self._bytes(name, 8)) / 2**64

    def chance(self, name: str, probability: float) -> bool:
        """True with a probability (0 to 1)."""
        return self.uniform(name, 0, 1) < probability

    def choice(self, name: str, items: Sequence[Item]) -> Item:
        """One of the items, each as likely."""
        return items[int(self.uniform(name, 0, len(items)))]

    def field(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Independent numbers in [-1, 1)."""
        words: Any = np.frombuffer(self._bytes(name, 4 * int(np.prod(shape))), "<u4")
        return (words.reshape(shape) / 2**31 - 1).astype(np.float32)

    def _bytes(self, name: str, count: int) -> bytes:
        return hashlib.shake_128(f"{self._what}\0{name}".encode()).digest(count)
