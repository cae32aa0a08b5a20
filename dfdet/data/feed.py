"""Remote shards fetched in plan order, ahead of the batches that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from dfdet.data.index import Index
from dfdet.data.plan import EpochPlan, rank_slice
from dfdet.data.reader import MAX_OPEN, Reader
from dfdet.data.remote import Remote

TRANSFERS = 8
"""Shards fetched at once by a rank (shards)."""
HORIZON = 4096
"""Batches looked ahead at most: a look takes about 10 microseconds (batches)."""


@dataclass
class _Held:
    fetch: Future[None]
    batches: int
    """Batches started or looked ahead at that need it and are not done (batches)."""


def plan_feed(reader: Reader, index: Index, plan: EpochPlan, *, rank: int, world: int, start: int) -> Feed:
    """Feeds a rank's part of a plan from batch ``start`` on; ahead of use it takes half the cache."""
    remote = [isinstance(shard, Remote) for shard in index.shards]

    def needs(batch: int) -> list[int]:
        ids = rank_slice(plan.ids[batch], rank, world)[rank_slice(plan.valid[batch], rank, world)]
        return [shard for shard in dict.fromkeys(index.shard[ids].tolist()) if remote[shard]]

    return Feed(
        reader,
        needs if any(remote) else lambda _: [],
        range(start, len(plan)),
        size_of=lambda shard: index.shards[shard].bytes,  # type: ignore[union-attr]
        max_bytes=index.cache.max_bytes // 2,
    )


class Feed:
    """Holds the shards of coming batches, each only while a batch needs it.

    Nothing here waits for room: a batch that is started has all its shards fetched, over any bound,
    and only the looking ahead stops at the bounds. So a cache smaller than a batch cannot block.

    Args:
        reader: Reads the shards.
        needs: Remote shards of a batch, in the order of need.
        batches: Numbers of the batches, in order.
        size_of: Length of a shard (bytes).
        max_bytes: Shards held for batches ahead (bytes).
        max_shards: Shards held (shards); more are fetched, but opened at each read.
    """

    def __init__(
        self,
        reader: Reader,
        needs: Callable[[int], Iterable[int]],
        batches: range,
        *,
        size_of: Callable[[int], int],
        max_bytes: int,
        max_shards: int = MAX_OPEN,
    ) -> None:
        self._reader, self._needs, self._size_of = reader, needs, size_of
        self._max_bytes, self._max_shards = max_bytes, max_shards
        self._next, self._end = batches.start, batches.stop
        self._pool = ThreadPoolExecutor(TRANSFERS, thread_name_prefix="dfdet-fetch")
        self._held: dict[int, _Held] = {}
        self._of: dict[int, list[int]] = {}
        self._bytes = 0

    def start(self, batch: int) -> None:
        """Begins to fetch what a batch needs, then what those after it do, without waiting."""
        while self._next <= batch:
            self._take(list(self._needs(self._next)))
        while self._next < min(self._end, batch + HORIZON):
            shards = list(self._needs(self._next))
            fresh = [shard for shard in shards if shard not in self._held]
            size = self._bytes + sum(map(self._size_of, fresh))
            if fresh and (size > self._max_bytes or len(self._held) + len(fresh) > self._max_shards):
                return
            self._take(shards)

    def done(self, batch: int) -> None:
        """Lets go of what no further batch needs."""
        for shard in self._of.pop(batch):
            held = self._held[shard]
            held.batches -= 1
            if not held.batches:
                del self._held[shard]
                self._bytes -= self._size_of(shard)
                # at once, or when its fetch ends
                held.fetch.cancel()
                held.fetch.add_done_callback(partial(self._drop, shard))

    def close(self) -> None:
        """Ends the threads and lets go of everything; the reader's transfers were interrupted before."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for shard, held in self._held.items():
            self._drop(shard, held.fetch)
        self._held.clear()

    def _take(self, shards: list[int]) -> None:
        """Counts the next batch into the shards it needs."""
        mine = self._of[self._next] = []
        for shard in shards:
            if shard not in self._held:
                if len(self._held) >= self._max_shards:
                    self._pool.submit(self._fetch, shard)
                    continue
                self._held[shard] = _Held(self._pool.submit(self._reader.hold, shard), 0)
                self._bytes += self._size_of(shard)
            self._held[shard].batches += 1
            mine.append(shard)
        self._next += 1

    def _fetch(self, shard: int) -> None:
        """Brings a shard into the cache without holding it."""
        self._reader.hold(shard)
        self._reader.drop(shard)

    def _drop(self, shard: int, fetch: Future[None]) -> None:
        if not fetch.cancelled() and fetch.exception() is None:
            self._reader.drop(shard)
