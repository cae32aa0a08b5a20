"""Decodes the batches of a plan on threads, in order and ahead of use.

Threads, not processes: reading, decoding and augmenting release the interpreter lock, results land in
the batch's own buffer without pickling or shared memory, and Ray workers need not fork. Measured: 239
against 442 microseconds an image for DataLoader processes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.data.augment import Parameters, draw_parameters
from dfdet.data.buffers import BufferPool
from dfdet.data.clips import Times
from dfdet.data.crops import check_crop_scale, crop_sides
from dfdet.data.decode import Pixels
from dfdet.data.feed import Feed, plan_feed
from dfdet.data.index import Index
from dfdet.data.plan import EpochPlan, Ids, rank_slice
from dfdet.data.prepare import Prepare
from dfdet.data.reader import DamageError, Reader
from dfdet.errors import DamagedSampleError, TrainingError

if TYPE_CHECKING:
    from dfdet.config import Augment

log = logging.getLogger(__name__)

CHUNK = 4
"""Samples of a task: a future costs about 20 microseconds, a sample 200 to 1500 (samples)."""
LOG_FIRST, LOG_EVERY = 3, 100
"""Damaged samples: the first ones are logged, then each hundredth."""


@dataclass
class Batch:
    """A rank's part of a global batch; owns its buffer for as long as any tensor of it lives."""

    images: Tensor
    """[b, S, S, 3] uint8 RGB, pinned if asked; a crop lies in the top left of its buffer."""
    sizes: Tensor
    """[b] int64 sides of the crops (pixels), on the CPU."""
    labels: Tensor
    """[b] int64, 0 real, 1 fake."""
    valid: Tensor
    """[b] bool; False for padding and skipped samples, whose images are zeros."""
    ids: Ids
    """[b] sample ids."""
    rest: Sequence[Parameters] | None = None
    """Augmentation of each that is left to :func:`dfdet.data.device_augment.finish`; None: nothing."""
    times: Tensor | None = None
    """[b] float32, when each lies in its video (0 to 1); None where the plan is not of clips."""


@dataclass(frozen=True)
class _Damage:
    sample: int
    reason: str
    detail: str


@dataclass
class _Work:
    """A batch that is being decoded."""

    number: int
    batch: Batch
    tasks: list[Future[list[tuple[int, _Damage]]]]


class Loader:
    """Makes batches of a plan's samples.

    Args:
        index: The data.
        crop_scale: Margin of the crop as a multiple of the tight face; sets of unknown scale give the
            middle square of the whole image.
        augment: Augmentation; None, or a strength of 0, for none.
        seed: Seed of the augmentation.
        threads: Decode threads; 0 for one a CPU.
        prefetch: Batches decoded ahead of use.
        on_damage: ``raise`` stops at the first damaged sample; ``skip`` masks, counts and logs it.
        max_damaged: Samples that may be skipped over the loader's life.
        rest_on_device: With ``augment.jpeg_first`` and without ``resize``, the threads only do JPEG, and
            batches carry the rest.
        resize: Side (pixels) and filter of Pillow's resize on the threads; None leaves crops as cut.
        pin: Buffers in pinned memory, for asynchronous copies to a GPU.
        max_side: Crops larger than this are shrunk to it (area mean) when decoded, so that one huge
            image does not set the size of all buffers (pixels).

    Raises:
        ConfigError: ``crop_scale`` is larger than a set's stored scale.
    """

    def __init__(
        self,
        index: Index,
        *,
        crop_scale: float,
        augment: Augment | None,
        seed: int,
        threads: int,
        prefetch: int,
        on_damage: Literal["raise", "skip"],
        max_damaged: int,
        rest_on_device: bool = False,
        resize: tuple[int, str] | None = None,
        pin: bool = False,
        max_side: int = 1024,
    ) -> None:
        check_crop_scale(index, crop_scale)
        self.damaged: Counter[str] = Counter()
        self._index, self._seed = index, seed
        self._augment = augment if augment is not None and augment.strength > 0 else None
        self._threads, self._prefetch = threads or os.cpu_count() or 1, max(1, prefetch)
        self._on_damage, self._max_damaged = on_damage, max_damaged
        self._sides = crop_sides(index, crop_scale)
        self.side = resize[0] if resize else int(min(self._sides.max(), max_side))
        jpeg_first = self._augment is not None and self._augment.jpeg_first
        jpeg_only = jpeg_first and rest_on_device and not resize
        self._prepare = Prepare(max_side, jpeg_first, jpeg_only, resize)
        self._reader = Reader(index.shards, index.cache)
        self._buffers = BufferPool(pin=pin)
        # Threads of ours are the parallelism; OpenCV's own would fight with them for the CPUs.
        cv2.setNumThreads(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the tars; iterators must have been closed before."""
        self._reader.close()

    def batches(
        self, plan: EpochPlan, *, epoch: int, rank: int, world: int, start: int = 0
    ) -> Iterator[Batch]:
        """This rank's part of each global batch, in plan order.

        Closing the iterator, or an error in the consumer, ends the threads before it returns.

        Args:
            plan: The epoch's plan.
            epoch: Its number, for the augmentation.
            rank: This rank.
            world: Number of ranks; divides the global batch.
            start: First batch, for a resume.

        Yields:
            Batches that stay valid as long as they are held.

        Raises:
            DamagedSampleError: A sample is damaged and ``on_damage`` is ``raise``.
            TrainingError: More samples were skipped than ``max_damaged``.
            StorageError: A remote shard cannot be fetched, or there is no room for it.
        """
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="dfdet-decode")
        feed = plan_feed(self._reader, self._index, plan, rank=rank, world=world, start=start)
        ahead: deque[_Work] = deque()
        self._reader.begin()
        try:
            for number in range(start, len(plan)):
                feed.start(number)
                ahead.append(self._submit(pool, plan, number, epoch, rank, world))
                if len(ahead) > self._prefetch:
                    yield self._finished(ahead.popleft(), feed)
            while ahead:
                yield self._finished(ahead.popleft(), feed)
        finally:
            self._reader.end()
            pool.shutdown(wait=True, cancel_futures=True)
            feed.close()

    def _submit(
        self, pool: ThreadPoolExecutor, plan: EpochPlan, number: int, epoch: int, rank: int, world: int
    ) -> _Work:
        """Starts decoding a batch."""
        ids = rank_slice(plan.ids[number], rank, world)
        valid = rank_slice(plan.valid[number], rank, world).copy()
        columns = np.arange(rank * len(ids), (rank + 1) * len(ids))
        drawn: Sequence[Parameters] | None = None
        if self._augment is not None:
            places = number * plan.ids.shape[1] + columns
            if plan.clip_frames:  # alike for all frames of a clip: a flip between them is no motion
                places -= places % plan.clip_frames
            drawn = draw_parameters(self._augment, self._seed, epoch, places)
        images = self._buffers.take((len(ids), self.side, self.side, 3))
        sizes = np.full(len(ids), self.side, np.int64)
        target = images.numpy()
        tasks = [
            pool.submit(self._decode_rows, target, sizes, ids, valid, drawn, range(low, low + CHUNK))
            for low in range(0, len(ids), CHUNK)
        ]
        labels = torch.from_numpy(self._index.label[ids].astype(np.int64))
        rest = drawn if self._prepare.jpeg_only else None
        times = torch.from_numpy(self._times(ids)) if plan.clip_frames else None
        batch = Batch(
            images, torch.from_numpy(sizes), labels, torch.from_numpy(valid), ids.copy(), rest, times
        )
        return _Work(number, batch, tasks)

    @cached_property
    def _times(self) -> Times:
        return Times(self._index)

    def _finished(self, work: _Work, feed: Feed) -> Batch:
        """Waits for a batch and books its damage, in plan order whatever thread met it first."""
        for task in work.tasks:
            for row, damage in task.result():
                self._book(damage)
                work.batch.valid[row] = False
        feed.done(work.number)
        return work.batch

    def _decode_rows(
        self,
        images: Pixels,
        sizes: NDArray[np.int64],
        ids: Ids,
        valid: NDArray[np.bool_],
        drawn: Sequence[Parameters] | None,
        rows: range,
    ) -> list[tuple[int, _Damage]]:
        """Decodes some rows of a batch into its buffer; padding and damaged rows become zeros."""
        found = []
        for row in rows[: max(0, len(ids) - rows.start)]:
            if not valid[row]:
                images[row] = 0
                continue
            try:
                crop = self._crop(int(ids[row]), drawn[row] if drawn else None, images[row])
                sizes[row] = _place(crop, images[row])
            except DamageError as error:
                images[row] = 0
                found.append((row, _Damage(int(ids[row]), error.reason, str(error))))
        return found

    def _crop(self, sample: int, parameters: Parameters | None, into: Pixels) -> Pixels:
        """Reads, decodes, cuts and augments a sample: [s, s, 3] with s at most ``side``."""
        index = self._index
        data = self._reader.read(
            int(index.shard[sample]),
            int(index.offset[sample]),
            int(index.size[sample]),
            int(index.crc32[sample]),
        )
        width, height = int(index.width[sample]), int(index.height[sample])
        room = into if width == height == self.side else None
        return self._prepare.crop(data, min(width, height), int(self._sides[sample]), parameters, room)

    def _book(self, damage: _Damage) -> None:
        """Raises, or counts and logs at a limited rate."""
        sample, index = damage.sample, self._index
        shard = index.shards[index.shard[sample]]
        where = f"{index.keys([sample])[0]} (byte {index.offset[sample]} of {shard}): {damage.detail}"
        if self._on_damage == "raise":
            raise DamagedSampleError(
                f"damaged sample {where}; copy or build the set again, or use --data.on_damage skip"
            )
        self.damaged[damage.reason] += 1
        total = self.damaged.total()
        if total <= LOG_FIRST or total % LOG_EVERY == 0:
            log.warning("skipped damaged sample %d: %s", total, where)
        if total > self._max_damaged:
            raise TrainingError(
                f"{total} damaged samples {dict(self.damaged)}, the last {where}; more than"
                f" data.max_damaged={self._max_damaged}: build the set again, or raise the bound"
            )


def _place(crop: Pixels, buffer: Pixels) -> int:
    """Copies a crop to the top left of its buffer, zeros the rest, returns its side."""
    side = crop.shape[0]
    if not np.may_share_memory(crop, buffer):  # decoded straight into it
        buffer[:side, :side] = crop
    if side < buffer.shape[0]:
        buffer[side:] = 0
        buffer[:side, side:] = 0
    return side
