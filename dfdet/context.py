"""What a training process knows of its surroundings; the loop knows nothing else of them.

``LocalContext`` is one process, or one of a group started by torchrun; ``ray_jobs.context`` has the
implementation for Ray Train workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from dfdet.runfolder import RunFolder


class Context(Protocol):
    """Rank, device and the ways out of a training process."""

    @property
    def rank(self) -> int:
        """This process among all (0 is first)."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """Device of this process."""

    @property
    def run(self) -> RunFolder:
        """The run's folder, on storage that all processes see."""

    def report(self, metrics: dict[str, Any]) -> None:
        """Tells the outside of an epoch's metrics; all ranks call it equally often."""


@dataclass
class LocalContext:
    """A process without Ray; joins torch's group from torchrun's environment, else is alone."""

    run: RunFolder
    device_name: str = "cpu"
    reports: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed asks for it
        cuda = self.device_name == "cuda"
        self.device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        if not dist.is_initialized():
            backend = "nccl" if cuda else "gloo"
            if self.world_size > 1:
                dist.init_process_group(backend)
            else:  # no port to clash with other runs
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def report(self, metrics: dict[str, Any]) -> None:
        """Keeps the metrics."""
        self.reports.append(metrics)


def agree(flag: bool, context: Context) -> bool:
    """Whether any rank raised the flag: all get the same answer, so all leave together."""
    if context.world_size == 1:
        return flag
    raised = torch.tensor(float(flag), device=context.device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def from_first(number: int, context: Context) -> int:
    """Rank 0's integer, on all ranks."""
    if context.world_size == 1:
        return number
    shared = torch.tensor(number, dtype=torch.int64, device=context.device)
    dist.broadcast(shared, src=0)
    return int(shared.item())
