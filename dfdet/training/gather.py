"""The global batch in the loss: gather features of all ranks, keep the own rows differentiable.

Every rank gathers the detached features of the global batch, splices in its own live rows and
computes the whole loss. A live row then receives its exact one-batch gradient; ``scale = world x
accumulation`` undoes the mean that data parallelism takes over ranks and micro-steps. The head sees
the whole batch everywhere, so its gradients are equal on all ranks and the mean changes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

gather_into: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The one collective under its new name, which torch 2.14 asks for, or its old."""


class Rows(NamedTuple):
    """What a loss sees of a batch of N samples."""

    features: Tensor
    """``[N, D]`` float32."""
    labels: Tensor
    """``[N]`` int64."""
    valid: Tensor
    """``[N]`` bool."""
    times: Tensor | None = None
    """``[N]`` float32, where the batch is of clips."""


class _Splice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: Tensor, live: Tensor, start: int, scale: float) -> Tensor:
        ctx.rows, ctx.scale = slice(start, start + len(live)), scale
        whole = gathered.detach().clone(memory_format=torch.contiguous_format)
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
    wire = (x.to(torch.uint8) if x.dtype == torch.bool else x).contiguous()
    whole = wire.new_empty(dist.get_world_size(group) * len(wire), *wire.shape[1:])
    gather_into(whole, wire, group=group)
    return whole.to(x.dtype)


def all_gather_batch(rows: Rows, group: dist.ProcessGroup | None = None) -> Rows:
    """The slices of a batch of all ranks, in rank order, in one message; carries no gradient.

    Labels, mask and times travel as more columns of the features: float32 holds them exactly.
    """
    features, labels, valid, times = rows
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return rows._replace(features=features.detach())
    columns = [column.to(features.dtype) for column in (labels, valid, times) if column is not None]
    whole = all_gather_rows(torch.cat([features.detach(), torch.stack(columns, dim=1)], dim=1), group)
    features, columns = whole[:, : -len(columns)], list(whole[:, -len(columns) :].unbind(1))
    return Rows(features, columns[0].to(labels.dtype), columns[1].bool(), *columns[2:])
