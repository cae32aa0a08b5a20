"""The global batch in the loss: gather features of all ranks, keep the own rows differentiable.

Every rank gathers the detached features of the global batch, splices in its own live rows and
computes the whole loss. A live row then receives its exact one-batch gradient; ``scale = world x
accumulation`` undoes the mean that data parallelism takes over ranks and micro-steps. The head sees
the whole batch everywhere, so its gradients are equal on all ranks and the mean changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Splice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: Tensor, live: Tensor, start: int, scale: float) -> Tensor:
        ctx.rows, ctx.scale = slice(start, start + len(live)), scale
        whole = gathered.detach().clone()
        whole[ctx.rows] = live.to(whole.dtype)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        return None, gradients[0][ctx.rows] * ctx.scale, None, None


def splice(gathered: Tensor, live: Tensor, start: int, scale: float) -> Tensor:
    """``gathered`` with rows ``start : start + n`` replaced by ``live``, differentiable in ``live`` only.

    Args:
        gathered: ``[N, D]`` features of the global batch; gets no gradient.
        live: ``[n, D]`` features with a graph, of the same dtype.
        start: First row that ``live`` takes.
        scale: Factor of ``live``'s gradient: world x accumulation under gradient averaging.
    """
    if not 0 <= start <= len(gathered) - len(live):
        raise ValueError(f"rows {start} to {start + len(live)} lie outside of {len(gathered)} gathered rows")
    return _Splice.apply(gathered, live, start, scale)


def all_gather_rows(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Equal-size slices ``[n, ...]`` of all ranks, concatenated in rank order: ``[world n, ...]``.

    Carries no gradient. Without a process group, or in a group of one, returns ``x`` detached.
    """
    x = x.detach()
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return x
    wire = x.to(torch.uint8) if x.dtype == torch.bool else x
    parts = [torch.empty_like(wire) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, wire.contiguous(), group=group)
    return torch.cat(parts).to(x.dtype)
