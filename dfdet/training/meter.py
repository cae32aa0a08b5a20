"""Speed of training, read without asking the device between log steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import torch

from dfdet.training.clock import StepClock

if TYPE_CHECKING:
    from dfdet.training.flops import Flops, Peak

T = TypeVar("T")
TIMES = ("step", "data_wait", "forward", "backward", "communication", "optimizer")
"""What is timed, each as ``perf/<name>_s``."""


class Meter:
    """Speed of a run: since the last read for the log, and in all for the result.

    ``data_wait_s`` is what the *host* waits for batches: while a GPU still works on earlier steps
    such a wait costs nothing, so it is the most that data can cost. The parts of a step are those of
    :class:`dfdet.training.clock.StepClock`; what they leave of ``step_s`` is data wait, device augmentation,
    and work of the host that the device does not hide. Under ZeRO 1 to 3 gradients are reduced
    during the backward pass, and are in its time.
    """

    def __init__(
        self,
        global_batch: int,
        device: torch.device,
        clock: StepClock | None = None,
        flops: Flops | None = None,
        peak: Peak | None = None,
        world: int = 1,
    ) -> None:
        """Without FLOPs and peak there is no ``perf/mfu``.

        Args:
            global_batch: Samples of all ranks in a step.
            clock: That of the engine.
            flops: FLOPs that the tuning mode needs for an image.
            peak: Of one device.
            world: Devices that share the global batch.
        """
        self.global_batch = global_batch
        self.device = device
        self.clock = clock or StepClock(device)
        self.share_of_peak: float | None = None
        """MFU of one image a second."""
        if flops is not None and peak is not None:
            self.share_of_peak = flops.step / (peak.flops_per_s * world)
        self.intervals: list[tuple[int, dict[str, float]]] = []
        """Steps of each interval read, and the seconds of each of :data:`TIMES` in it."""
        self._reset()

    def _reset(self) -> None:
        self.since = time.perf_counter()
        self.steps = 0
        self.wait_s = 0.0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time spent on getting each counted as wait; timing starts here.

        What lies between two such loops (validation, a checkpoint at an epoch's end) counts nowhere.
        """
        iterator = iter(batches)
        self._reset()
        self.clock.read()
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
        parts = {str(part): seconds for part, seconds in self.clock.read().items()}
        seconds = {"step": time.perf_counter() - self.since, "data_wait": self.wait_s, **parts}
        steps = self.steps
        if steps:
            self.intervals.append((steps, seconds))
        self._reset()
        return {
            **self._rates(steps, seconds["step"]),
            **{f"perf/{name}_s": seconds[name] / max(1, steps) for name in TIMES},
            "perf/peak_memory_mib": self._peak_mib(),
        }

    def totals(self) -> dict[str, float]:
        """Speed of the whole run, of what :meth:`read` has read.

        images/s, MFU and the share of the data wait are over all training time, the first steps
        included; the times of a step are medians over the intervals.
        """
        steps = sum(count for count, _ in self.intervals)
        if not steps:
            return {}
        total = {name: sum(seconds[name] for _, seconds in self.intervals) for name in TIMES}
        return {
            **self._rates(steps, total["step"]),
            "perf/data_wait_share": total["data_wait"] / total["step"],
            **{f"perf/{name}_s": median(s[name] / count for count, s in self.intervals) for name in TIMES},
            "perf/peak_memory_mib": self._peak_mib(),
        }

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        images_per_s = self.global_batch * steps / seconds
        found = {"perf/images_per_s": images_per_s}
        if self.share_of_peak is not None:
            found["perf/mfu"] = images_per_s * self.share_of_peak
        return found

    def _peak_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
