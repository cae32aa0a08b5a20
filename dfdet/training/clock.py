"""Where the time of a step goes, measured on the device and read without waiting in between."""

from __future__ import annotations

import time
from typing import Literal

import torch

Part = Literal["forward", "backward", "communication", "optimizer"]
PARTS: tuple[Part, ...] = ("forward", "backward", "communication", "optimizer")


class StepClock:
    """A stopwatch that one part of a step after another holds.

    On CUDA a mark is an event in the current stream, so the times are the device's own and marking
    costs no synchronisation; elsewhere it is the host's clock. What communication takes includes
    the wait for slower ranks. Time in which no part runs (data, logging, checkpoints) is not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._marks: list[tuple[float | torch.cuda.Event, Part | None]] = []
        self._spare: list[torch.cuda.Event] = []

    def start(self, part: Part) -> None:
        """From now on the time is this part's; what ran before ends here."""
        self._marks.append((self._now(), part))

    def stop(self) -> None:
        """No part runs from now on."""
        self._marks.append((self._now(), None))

    def read(self) -> dict[Part, float]:
        """Seconds of each part since the last read; waits for the device. Call it between steps."""
        if self.cuda and self._marks:
            self._marks[-1][0].synchronize()  # type: ignore[union-attr]
        found = dict.fromkeys(PARTS, 0.0)
        for (begun, part), (ended, _) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                found[part] += self._between(begun, ended)
        if self.cuda:
            self._spare += [event for event, _ in self._marks]  # type: ignore[misc]
        self._marks.clear()
        return found

    def _now(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
        if isinstance(begun, float) or isinstance(ended, float):
            return float(ended) - float(begun)  # type: ignore[arg-type]
        return begun.elapsed_time(ended) / 1000
