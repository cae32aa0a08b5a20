"""Batch buffers that are used again only when nobody holds them any more."""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from dfdet.data.decode import Pixels


class BufferPool:
    """Lends uint8 image buffers.

    Fresh memory for each batch costs its page faults. A buffer in ordinary memory comes back by itself
    when the last tensor over it is gone, so a consumer may hold batches as long as it likes. Pinned
    memory is left to PyTorch's caching host allocator, which does the same and also waits for copies
    to the device that are still under way.

    Args:
        pin: Lend pinned memory.
    """

    def __init__(self, *, pin: bool = False) -> None:
        self._pin = pin
        self._free: defaultdict[tuple[int, ...], list[Pixels]] = defaultdict(list)

    def take(self, batch: int, side: int) -> Tensor:
        """A [batch, side, side, 3] uint8 tensor with undefined content."""
        shape = (batch, side, side, 3)
        if self._pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        free = self._free[shape]
        base = free.pop() if free else np.empty(shape, np.uint8)
        # The tensor's storage holds `lent`, and nothing else does.
        lent = base[:]
        weakref.finalize(lent, free.append, base).atexit = False
        return torch.from_numpy(lent)
