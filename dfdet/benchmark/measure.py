"""Time, memory and exactness of a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dfdet.training.flops import synchronize

MIB = 2**20


@dataclass
class Times:
    """Seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of this process, all threads."""

    @property
    def wall_s(self) -> float:
        """Median."""
        return statistics.median(self.wall)

    @property
    def cpu_s(self) -> float:
        """Median."""
        return statistics.median(self.cpu)


def interleaved(steps: Sequence[Callable[[], None]], rounds: int, device: torch.device) -> list[Times]:
    """Times of each step, all of them once a round, so that a busy machine slows all alike."""
    times = [Times() for _ in steps]
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            synchronize(device)
            found.wall.append(time.perf_counter() - wall)
            found.cpu.append(time.process_time() - cpu)
    return times


@dataclass(frozen=True)
class Saved:
    """What autograd keeps between forward and backward, parameters and input left out (MiB)."""

    activations: float
    """What grows with the batch, at the batch asked for."""
    copies: float
    """What does not: weights that autocast copied."""


def saved_memory(
    forward: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], images: Tensor, batch: int
) -> Saved:
    """Memory held for the backward at a batch size, from forwards of one image and of two."""
    kept = list(parameters)
    one, two = (saved_bytes(partial(forward, images[:n]), [*kept, images]) / MIB for n in (1, 2))
    return Saved((two - one) * batch, max(0.0, 2 * one - two))


def saved_bytes(forward: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward of ``forward()``."""
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    kept: dict[int, torch.UntypedStorage] = {}  # alive until the end, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def peak_mib(step: Callable[[], None], device: torch.device) -> float | None:
    """Most that a step allocates on top of what is there before it; None on a CPU (MiB)."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


@dataclass(frozen=True)
class Outcome:
    """Features and the gradients of the norms, float64."""

    features: Tensor
    gradients: Tensor

    def error(self, exact: Outcome) -> tuple[float, float]:
        """Relative errors (Euclidean) of features and gradients."""
        return _relative(self.features, exact.features), _relative(self.gradients, exact.gradients)


def outcome(forward: Callable[[Tensor], Tensor], norms: Sequence[nn.Parameter], images: Tensor) -> Outcome:
    """What a tower gives for images, and its norms' gradients of a fixed random sum of the features."""
    features = forward(images)
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = (features.double() * direction.to(features.device)).sum()
    gradients = torch.autograd.grad(loss, list(norms))
    return Outcome(features.detach().double(), torch.cat([g.double().flatten() for g in gradients]))


def _relative(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()
