"""AdamW that never takes a non-finite step, without asking the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm


class GuardedAdamW(torch.optim.AdamW):
    """Fused AdamW whose kernel leaves weights, moments and step count as they were on a bad step.

    A step is bad where :attr:`loss_bad` is set or the norm of the gradients in hand is not finite (one
    that float32 cannot hold would overflow the second moments too). The decision stays on the device:
    it goes to the fused kernel as ``found_inf``, as gradient scalers do; so does clipping, as
    ``grad_scale``. DeepSpeed's own clipping at stage 0 waits for the host, reduces a norm that is the
    same on all ranks, and scales each gradient by itself.
    """

    def __init__(self, params: Any, *, partitioned: bool, clip_norm: float = 0.0, **defaults: Any) -> None:
        """With ``partitioned`` (ZeRO 1 to 3) ranks hold different gradients and agree on the flag.

        Args:
            clip_norm: Largest norm of all gradients together; 0 does not clip. Not for partitions.
        """
        if partitioned and clip_norm:
            raise ValueError("a partition does not know the norm of the whole: let DeepSpeed clip")
        _without_dynamo()
        super().__init__(params, fused=True, **defaults)
        self.partitioned = partitioned
        self.clip_norm = clip_norm
        self.loss_bad: torch.Tensor | None = None
        """Scalar on the device, not zero where the loss was not finite; set before each step."""
        self.bad: torch.Tensor | None = None
        """Scalar on the device: whether any update since it was set to None was left out. ZeRO calls
        :meth:`step` for each partition, or, where it finds a NaN itself, not at all: still None."""
        self.grad_scale: torch.Tensor | None = None
        self.found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One update, or none."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        flags = []
        if grads:
            norm = get_total_norm(grads)
            flags.append(norm.isfinite().logical_not())
            if self.clip_norm:
                self.grad_scale = (norm / self.clip_norm).clamp(min=1.0)
        if self.loss_bad is not None:
            flags.append(self.loss_bad.bool())
        if flags:
            found = torch.stack(flags).any().float()
            if self.partitioned and dist.is_initialized():
                dist.all_reduce(found, op=dist.ReduceOp.MAX)
            self.found_inf = found
            self.bad = found if self.bad is None else torch.maximum(self.bad, found)
        # unwrapped: the wrapper imports torch._dynamo, and sets the no_grad that is set here already
        step = getattr(torch.optim.Adam.step, "__wrapped__", torch.optim.Adam.step)
        return step(self, closure)

    def prepare_state(self, params: Iterable[torch.Tensor]) -> None:
        """Makes zero moments now rather than at the first step.

        DeepSpeed links its partitions to moments after the first group's step, when those of later
        groups would not exist yet; and a resume needs somewhere to put what it read.

        Args:
            params: What :meth:`step` will see: parameters, or the flat partitions of ZeRO.
        """
        for param in params:
            self.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
            }

    def set_step_count(self, count: int) -> None:
        """Number of updates taken, for the bias correction."""
        for state in self.state.values():
            state["step"].fill_(count)

    def step_count(self) -> int:
        """Number of updates taken (good steps only)."""
        return max((int(state["step"].item()) for state in self.state.values()), default=0)


def _without_dynamo() -> None:
    """Lets torch's optimizers be called without torch.compile's front end, which they import (1 to 2 s)
    only to tell it to leave them alone; they are never compiled here."""
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain
