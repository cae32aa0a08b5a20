"""What a training process knows of its surroundings; the loop knows nothing else of them.

``LocalContext`` is one process, or one of a group started by torchrun; ``ray_jobs.worker`` has the
implementation for Ray Train workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from dfdet.hang.progress import group_timeout_s
from dfdet.runs.runfolder import RunFolder
from dfdet.runs.startup import Startup
from dfdet.runs.tracking import TensorBoard

GROUP_TIMEOUT_S = group_timeout_s(0.0)
"""How long a rank waits for the others in a collective, where nothing else is said (seconds)."""


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

    @property
    def startup(self) -> Startup:
        """The clock of this start."""

    def report(self, metrics: dict[str, Any]) -> None:
        """Tells the outside of an epoch's metrics; all ranks call it equally often."""

    def record(self, metrics: dict[str, Any]) -> None:
        """Keeps a line of metrics in the run folder and with whatever tracks the run; the first rank's."""

    def stop_reason(self) -> str | None:
        """Why the run should stop now with a checkpoint, as far as this process knows; else None."""

    def in_danger(self) -> bool:
        """Whether this process has been told that its node goes away soon: time for a checkpoint."""


@dataclass
class LocalContext:
    """A process without Ray; joins torch's group from torchrun's environment, else is alone."""

    run: RunFolder
    device_name: str = "cpu"
    reports: list[dict[str, Any]] = field(default_factory=list)
    startup: Startup = field(default_factory=Startup.of_process)
    stop: str | None = None
    """Set, as by a signal, to ask all ranks for a checkpoint and an end."""

    def __post_init__(self) -> None:
        group = join_group(self.device_name)
        self.rank, self.world_size, self.device = group.rank, group.world_size, group.device
        self.tensorboard = TensorBoard(self.run.path / "tensorboard")

    def report(self, metrics: dict[str, Any]) -> None:
        """Keeps the metrics."""
        self.reports.append(metrics)

    def record(self, metrics: dict[str, Any]) -> None:
        """Keeps the metrics in the run folder, for TensorBoard too."""
        self.run.append_metrics(metrics)
        self.tensorboard.record(metrics)

    def stop_reason(self) -> str | None:
        """What this process was told, or the reason that lies in the run folder."""
        return self.stop or (self.run.stop_requested() if self.rank == 0 else None)

    def close(self) -> None:
        """Writes what TensorBoard still waits for."""
        self.tensorboard.close()

    def in_danger(self) -> bool:
        """Never: a signal ends the run, with a checkpoint, at the next log step."""
        return False


@dataclass(frozen=True)
class Group:
    """This process's place among all."""

    rank: int
    world_size: int
    device: torch.device


def join_group(device_name: str, timeout_s: float = GROUP_TIMEOUT_S) -> Group:
    """Joins torch's group from torchrun's environment, unless that is done; alone without one.

    Args:
        device_name: ``cpu`` or ``cuda``.
        timeout_s: How long a collective waits for the other ranks (seconds).
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed asks for it
    cuda = device_name == "cuda"
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if world > 1:
            # NCCL's own is 10 minutes: no longer than the first rank may wait for a storage
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        else:  # no port to clash with other runs
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Group(rank, world, device)


def agree(context: Context, *flags: bool) -> tuple[bool, ...]:
    """Which flags any rank raised: all get the same answers, so all leave together."""
    if context.world_size == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.float32, device=context.device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def from_first(number: int, context: Context | Group) -> int:
    """Rank 0's integer, on all ranks."""
    if context.world_size == 1:
        return number
    shared = torch.tensor(number, dtype=torch.int64, device=context.device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


def text_from_first(text: str, context: Context | Group) -> str:
    """Rank 0's text, on all ranks; the others' is not used."""
    if context.world_size == 1:
        return text
    data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8).to(context.device)
    size = from_first(len(text.encode()), context)
    shared = (
        data if context.rank == 0 else torch.empty(max(1, size), dtype=torch.uint8, device=context.device)
    )
    dist.broadcast(shared, src=0)
    return bytes(shared.tolist()[:size]).decode()
