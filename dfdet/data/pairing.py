"""Units of a plan: what stays together in a batch, a sample or a pair of a real and a fake of one group.

Tables are computed in pieces, so that 10^8 samples need no more than a few arrays of one number a unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dfdet.data.hashing import chain
from dfdet.errors import ShardSetError
from dfdet.schema import FAKE, REAL

# Purposes of the hashes, so that no two draws share a stream; 1 and 2 are those of the order.
_PARTNER, _METHOD = 3, 4

PIECE = 1 << 18
"""Units handled at once: temporary arrays of 2 MB stay near the cache (units)."""

Ids = NDArray[np.int64]
Mode = Literal["single", "pair", "rotate", "clip"]


class Columns(Protocol):
    """What a plan needs of an index: integer columns, row = sample id; 20 bytes a sample in all."""

    @property
    def shard(self) -> NDArray[Any]:
        """Number of the tar, [n]."""

    @property
    def label(self) -> NDArray[Any]:
        """0 real, 1 fake, [n]."""

    @property
    def method(self) -> NDArray[Any]:
        """Code of the method, [n]."""

    @property
    def group(self) -> NDArray[Any]:
        """Code of the real video behind, -1 unknown, [n]."""

    @property
    def group_exact(self) -> NDArray[np.bool_]:
        """Whether the group is known exactly, [n]."""

    @property
    def video(self) -> NDArray[Any]:
        """Code of the video; only clips need it, [n]."""

    @property
    def frame(self) -> NDArray[Any]:
        """Frame in the video, [n]."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of an epoch, numbered in the order of their primary samples."""

    count: int
    """Number of units."""
    reals: NDArray[Any] | None = None
    """Real of each pair, [count]; None where a unit is the sample of its number."""
    fakes: NDArray[Any] | None = None
    """Fake of each pair, [count]."""

    def __len__(self) -> int:
        return self.count

    def first(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """First sample of each unit: its shard is the unit's, [u]."""
        return numbers if self.reals is None else self.reals[numbers]

    def samples(self, numbers: NDArray[Any]) -> Ids:
        """Sample ids of units, [u, k] int64; pairs as (real, fake)."""
        if self.reals is None or self.fakes is None:
            return numbers.astype(np.int64)[:, None]
        return np.stack([self.reals[numbers], self.fakes[numbers]], axis=1).astype(np.int64)

    def valid(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of :meth:`samples` are more than padding, [u, k]: of samples and pairs all."""
        return np.ones((len(numbers), 1 if self.reals is None else 2), bool)


def units_of(index: Columns, mode: Mode, seed: int, epoch: int) -> Units:
    """The units of an epoch: all samples; each fake with a real; or each real with one fake.

    Raises:
        ShardSetError: Nothing can be paired, or the codes are too large to combine.
    """
    if mode == "single":
        return Units(len(index.label))
    pairable = pairable_samples(index)
    primary = _rows(pairable & (index.label == (FAKE if mode == "pair" else REAL)))
    if not len(primary):
        raise _unpairable(mode)
    _check_codes(index)
    if mode == "pair":
        pool = _Pool(index, _rows(pairable & (index.label == REAL)), by_method=False)
    else:
        pool = _Pool(index, _rows(pairable & (index.label == FAKE)), by_method=True)
    cells = pool.cells() if mode == "rotate" else None
    partners = np.empty_like(primary)
    # Queries of neighbouring groups are answered together: rows in no order took 320 s at 10^8, not 13.
    places = ranges_of(index.group, primary)[0]
    for piece in pieces(len(primary)):
        some = places[piece]
        queries = primary[some].astype(np.int64)
        wanted = index.group[queries].astype(np.int64)
        if cells is not None:
            wanted = _rotating_cells(queries, wanted * pool.methods, pool.methods, cells, seed, epoch)
        partners[some] = pool.draw(queries, wanted, seed, epoch)
    if mode == "pair":
        return Units(len(primary), partners, primary)
    return Units(len(primary), primary, partners)


def count_units(index: Columns, mode: Mode) -> int:
    """Units of any epoch; raises as :func:`units_of`."""
    if mode == "single":
        return len(index.label)
    count = int((pairable_samples(index) & (index.label == (FAKE if mode == "pair" else REAL))).sum())
    if not count:
        raise _unpairable(mode)
    return count


def pairable_samples(index: Columns) -> NDArray[np.bool_]:
    """Samples whose exact group holds reals and fakes, [n] bool."""
    exact = np.asarray(index.group_exact, bool) & (np.asarray(index.group) >= 0)
    groups = int(index.group.max(initial=-1)) + 1
    both = np.ones(groups + 1, bool)
    for label in (REAL, FAKE):
        have = np.zeros(groups + 1, bool)
        have[index.group[exact & (index.label == label)]] = True
        both &= have
    # The last entry answers for the unknown group -1.
    return exact & both[index.group]


def pieces(count: int) -> Iterator[slice]:
    """Slices of at most ``PIECE`` that cover ``count``."""
    for low in range(0, count, PIECE):
        yield slice(low, min(low + PIECE, count))


def row_type(count: int) -> type[np.unsignedinteger[Any]]:
    """The smaller unsigned type that numbers ``count`` rows."""
    return np.uint32 if count <= 2**32 else np.uint64


def partition(which: NDArray[Any], buckets: int) -> tuple[NDArray[Any], Ids]:
    """Numbers by bucket, ascending in each, [n], and the first place of each bucket and the end.

    Args:
        which: Bucket of each number, [n]; NumPy's stable sort is a radix sort up to 16 bits.
        buckets: Number of buckets.
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=buckets))])
    return np.argsort(which, kind="stable").astype(row_type(len(which))), starts


class _Pool:
    """Possible partners, sorted by cell, frame and sample id; a cell is a group, or a method of a group.

    Args:
        index: Columns of the data.
        rows: Sample ids to choose from, ascending, [p].
        by_method: Cells are (group, method) instead of groups.
    """

    def __init__(self, index: Columns, rows: NDArray[Any], *, by_method: bool) -> None:
        self.methods = int(index.method.max()) + 1
        self._frame, self._span = index.frame, int(index.frame.max()) + 1
        keys = np.empty(len(rows), np.int64)
        for piece in pieces(len(rows)):
            cells = index.group[rows[piece]].astype(np.int64)
            if by_method:
                cells = cells * self.methods + index.method[rows[piece]]
            keys[piece] = cells * self._span + index.frame[rows[piece]]
        # Sets are written group by group, so that whole indexes are often sorted.
        if not (keys[1:] >= keys[:-1]).all():
            order, starts = ranges_of(index.group, rows)
            for low, high in itertools.pairwise(starts.tolist()):
                order[low:high] = order[low:high][np.argsort(keys[order[low:high]], kind="stable")]
            rows, keys = rows[order], keys[order]
        self._rows, self._keys = rows, keys

    def cells(self) -> Ids:
        """Cells that have members, ascending."""
        cells = self._keys // self._span
        return cells[np.flatnonzero(np.diff(cells, prepend=-1))]

    def draw(self, queries: Ids, wanted: Ids, seed: int, epoch: int) -> NDArray[Any]:
        """For each query a member of its cell: of the same frame if there is one, else by hash.

        Args:
            queries: Sample ids to find a partner for, [q].
            wanted: Cell of each, [q]; every cell has members.
            seed: Seed of the plan.
            epoch: Epoch: a choice by hash is another one in the next.
        """
        same = wanted * self._span + self._frame[queries]
        low, high = np.searchsorted(self._keys, same), np.searchsorted(self._keys, same + 1)
        none = low == high
        low[none] = np.searchsorted(self._keys, wanted[none] * self._span)
        high[none] = np.searchsorted(self._keys, (wanted[none] + 1) * self._span)
        draw = chain(seed, epoch, _PARTNER, queries)
        return self._rows[low + (draw % (high - low).astype(np.uint64)).astype(np.int64)]


def _rotating_cells(reals: Ids, first: Ids, methods: int, cells: Ids, seed: int, epoch: int) -> Ids:
    """The (group, method) cell of each real's fake: the group's methods in turn, one an epoch.

    Each real starts at a hashed offset, so that an epoch has all methods and each real meets all
    of its group's methods in as many epochs as there are methods.
    """
    low, high = np.searchsorted(cells, first), np.searchsorted(cells, first + methods)
    offset = (chain(seed, _METHOD, reals) % np.uint64(2**31)).astype(np.int64)
    return cells[low + (offset + epoch) % (high - low)]


def _rows(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Sample ids where the mask holds, ascending, in the smaller type."""
    return np.flatnonzero(mask).astype(row_type(len(mask)))


def ranges_of(code: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[Any], Ids]:
    """Places in ``rows`` by ranges of their codes (groups, videos): :func:`partition`.

    Args:
        code: Code of each sample, [n].
        rows: Sample ids, ascending, [p].
    """
    buckets, codes = min(len(rows) // PIECE + 1, 1 << 16), int(code.max()) + 1
    which = np.empty(len(rows), np.uint16)
    for piece in pieces(len(rows)):
        which[piece] = code[rows[piece]].astype(np.int64) * buckets // codes
    return partition(which, buckets)


def _check_codes(index: Columns) -> None:
    """Cell and frame are combined into one int64."""
    sizes = [int(column.max()) + 1 for column in (index.group, index.method, index.frame)]
    if (sizes[0] + 1) * sizes[1] * sizes[2] >= 2**63:
        raise ShardSetError(
            f"{sizes[0]} groups x {sizes[1]} methods x {sizes[2]} frames: too many to number the cells of"
            " pairs in 63 bits; number the frames of a video from 0, or use --data.sampling single"
        )


def _unpairable(mode: Mode) -> ShardSetError:
    return ShardSetError(
        f"data.sampling={mode}: no fake has a real of its group (group_level exact);"
        " use --data.sampling single"
    )
