"""Batch buffers that are used again only when nobody holds them any more."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BufferPool:
    """Lends buffers.

    Fresh memory for each batch costs its page faults. A buffer in ordinary memory comes back by itself
    when the last tensor over it is gone, so a consumer may hold batches as long as it likes. Pinned
    memory is left to PyTorch's caching host allocator, which does the same and also waits for copies
    to the device that are still under way.

    Args:
        dtype: Type of the elements.
        pin: Lend pinned memory.
    """

    def __init__(self, dtype: Literal["uint8", "float32"] = "uint8", *, pin: bool = False) -> None:
        self._dtype, self._pin = dtype, pin
        self._free: defaultdict[tuple[int, ...], list[NDArray[Any]]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of a shape with undefined content."""
        if self._pin:
            return torch.empty(shape, dtype=getattr(torch, self._dtype), pin_memory=True)
        free = self._free[shape]
        base = free.pop() if free else np.empty(shape, self._dtype)
        # The storage of the tensor that is given away holds `lent`, and nothing else does.
        lent = base[:]
        weakref.finalize(lent, free.append, base).atexit = False
        return torch.from_numpy(lent)
