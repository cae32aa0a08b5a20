"""The order of an epoch's units: a permutation that is sorted bucket by bucket, when it is read.

Sorting 10^8 keys at once takes minutes and gigabytes before the first batch. Here one pass puts the
units into buckets that follow each other in the order; a bucket is sorted when a batch first needs it.
The permutation is that of one whole sort, and any place of it is reached without what lies before.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfdet.data.hashing import Uint64, chain
from dfdet.data.pairing import Ids, Units, partition, pieces

# Purposes of the hashes, so that no two draws share a stream; 3 and 4 are those of the pairs.
_ORDER, _SHARDS = 1, 2

BUCKET_UNITS = 1 << 18
"""Units that are sorted at once over all lanes: 15 ms of work (units)."""
MAX_BUCKETS = 1 << 16
"""Numbers of buckets have 16 bits (buckets)."""


class Order:
    """Permutation of units by hashed keys, within blocks of shards in hashed order where asked.

    Args:
        shard: Shard of each sample, [n].
        units: What to order.
        seed: Seed of the plan.
        epoch: Number of the epoch.
        block_shards: Shards of a block; 0 for one block of all (shards).
        lanes: Places at which the order is read at the same time (runs).
    """

    def __init__(
        self, shard: NDArray[Any], units: Units, seed: int, epoch: int, block_shards: int, lanes: int
    ) -> None:
        self._keys = _Keys(shard, units, seed, epoch, block_shards)
        wanted = -(-len(units) * lanes // BUCKET_UNITS)
        members, self._starts = _partition(self._keys, len(units), max(1, min(wanted, MAX_BUCKETS)))
        # A partial, not a method: the plan of an ended epoch must not wait for the cycle collector.
        # Room for two buckets a lane where batches are decoded and where shards are fetched ahead.
        self._bucket = lru_cache(4 * lanes)(partial(_sorted, self._keys, members, self._starts))

    def take(self, low: int, high: int) -> NDArray[Any]:
        """Unit numbers at the places ``low`` to ``high`` of the order, [high - low]."""
        if low == high:
            return np.empty(0, np.int64)
        first = int(np.searchsorted(self._starts, low, side="right")) - 1
        last = int(np.searchsorted(self._starts, high, side="left"))
        parts = [self._bucket(number) for number in range(first, last)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found[low - self._starts[first] : high - self._starts[first]]


class _Keys:
    """Sort keys of units: first the place of the block, then the hash, which has no ties."""

    def __init__(self, shard: NDArray[Any], units: Units, seed: int, epoch: int, block_shards: int) -> None:
        self._shard, self._units, self._seed, self._epoch = shard, units, seed, epoch
        self.blocks = 1
        if block_shards:
            self._place = self._places(block_shards)
            self.blocks = int(self._place.max(initial=0)) + 1

    def hashes(self, numbers: NDArray[Any]) -> Uint64:
        """Hash of each unit, [u]."""
        return chain(self._seed, self._epoch, _ORDER, numbers)

    def block(self, numbers: NDArray[Any]) -> Ids:
        """Place of each unit's block, [u]."""
        return self._place[self._shard[self._units.first(numbers)]]

    def _places(self, block_shards: int) -> Ids:
        """Place of each shard's block: the shards that occur in hashed order, ``block_shards`` at a time."""
        occurs = np.zeros(int(self._shard.max(initial=-1)) + 1, bool)
        for piece in pieces(len(self._units)):
            numbers = np.arange(piece.start, piece.stop)
            occurs[self._shard[self._units.first(numbers)]] = True
        present = np.flatnonzero(occurs)
        keys = chain(self._seed, self._epoch, _SHARDS, present)
        place = np.full(len(occurs), -1, np.int64)
        place[present[np.argsort(keys, kind="stable")]] = np.arange(len(present)) // block_shards
        return place


def _partition(keys: _Keys, units: int, buckets: int) -> tuple[NDArray[Any] | None, Ids]:
    """Units by bucket, each bucket's ascending, [units], and the first place of each bucket and the end.

    A bucket holds neighbouring blocks, or a range of the hashes of one block.
    """
    if buckets == 1:
        return None, np.array([0, units])
    # Sixteen ranges or more to a bucket make buckets of nearly one size.
    split = (16 * buckets // keys.blocks).bit_length()
    ranges = keys.blocks << split
    buckets = min(buckets, ranges)
    which = np.empty(units, np.uint8 if buckets <= 256 else np.uint16)
    for piece in pieces(units):
        numbers = np.arange(piece.start, piece.stop)
        place = np.zeros(1, np.int64) if keys.blocks == 1 else keys.block(numbers) << split
        if split:
            place = place + (keys.hashes(numbers) >> np.uint64(64 - split)).astype(np.int64)
        which[piece] = place * buckets // ranges
    return partition(which, buckets)


def _sorted(keys: _Keys, members: NDArray[Any] | None, starts: Ids, number: int) -> NDArray[Any]:
    """Units of a bucket in order."""
    low, high = int(starts[number]), int(starts[number + 1])
    units = np.arange(low, high) if members is None else members[low:high]
    order = np.argsort(keys.hashes(units))
    if keys.blocks > 1:
        order = order[np.argsort(keys.block(units[order]), kind="stable")]
    return units[order]
