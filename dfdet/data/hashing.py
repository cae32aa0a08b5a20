"""Random numbers from fixed arithmetic: splitmix64 over uint64.

A library's generator promises its stream for one build only; an order or an augmentation that must
survive an upgrade, a resume and another world size comes from a hash of what it belongs to.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Uint64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)


def splitmix64(values: ArrayLike) -> Uint64:
    """One splitmix64 step of each value: a bijection of uint64, so different inputs never tie.

    Args:
        values: Integers; negative ones wrap modulo 2**64.

    Returns:
        uint64 array of the same shape (at least 1-d: only arrays wrap without a warning).

    Raises:
        TypeError: The values are no integers of one kind; NumPy makes floats of mixed ones.
    """
    z = _words(values) + _GAMMA
    # In place: half the time of new arrays for each step, and half the memory.
    z ^= z >> np.uint64(30)
    z *= _MUL1
    z ^= z >> np.uint64(27)
    z *= _MUL2
    z ^= z >> np.uint64(31)
    return z


def chain(*values: ArrayLike) -> Uint64:
    """Hash of a tuple of integers (arrays broadcast); the order of the arguments matters."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = splitmix64(state ^ _words(value))
    return state


def uniforms(state: Uint64, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each state, as [n, count]: the splitmix64 stream from there."""
    steps = np.arange(count, dtype=np.uint64) * _GAMMA
    bits = splitmix64(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _words(values: ArrayLike) -> Uint64:
    array = np.atleast_1d(np.asarray(values))
    if array.dtype.kind not in "iu":
        raise TypeError(f"integers wanted, not {array.dtype}")
    return array.astype(np.uint64, copy=False)
