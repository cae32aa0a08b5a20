"""Speed of training, read without asking the device between log steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Meter:
    """Times steps and the wait for data between two reads."""

    def __init__(self, global_batch: int, device: torch.device) -> None:
        self.global_batch = global_batch
        self.device = device
        self._reset()

    def _reset(self) -> None:
        self.since = time.perf_counter()
        self.steps = 0
        self.wait_s = 0.0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time spent on getting each counted as wait."""
        iterator = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - begun
            yield batch

    def step(self) -> None:
        """Counts a step."""
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Speed since the last read (images/s of all ranks, seconds a step, MiB), and starts anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed, steps = time.perf_counter() - self.since, max(1, self.steps)
        found = {
            "perf/images_per_s": self.global_batch * self.steps / elapsed,
            "perf/step_s": elapsed / steps,
            "perf/data_wait_s": self.wait_s / steps,
            "perf/peak_memory_mib": self._peak_mib(),
        }
        self._reset()
        return found

    def _peak_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
