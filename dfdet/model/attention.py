"""Self-attention whose backward keeps only queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

CHUNK = 2**19
"""Attention weights in hand at a time: what a core's cache holds (numbers)."""


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of joint queries, keys and values (arXiv 1706.03762).

    On a CPU torch's fused kernel reaches a quarter of a matrix product's speed in bfloat16, so training
    takes another way there; everything else is torch's kernel.

    Args:
        qkv: ``[B, N, 3 D]``, queries first, values last, heads side by side in each.
        heads: Number of heads, which divides D.

    Returns:
        ``[B, N, D]``.
    """
    on_cpu = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    if on_cpu and qkv.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        with torch.autocast("cpu", enabled=False):  # which would round the scores
            return _CpuAttention.apply(qkv, heads)
    query, key, value = qkv.unflatten(2, (3, heads, -1)).transpose(1, 3).unbind(2)  # [B, heads, N, d]
    return merge_heads(F.scaled_dot_product_attention(query, key, value))


def merge_heads(mixed: Tensor) -> Tensor:
    """``[B, heads, N, d]`` to ``[B, N, heads d]``."""
    return mixed.transpose(1, 2).flatten(2)


class _CpuAttention(torch.autograd.Function):
    """Attention in bfloat16 by plain products, its weights computed again in the backward.

    The scores are float32, as in the fused kernels: rounded to bfloat16 they triple the error.
    Measured at 257 tokens and 16 heads against torch's kernel: .58 of the time, 3/4 of the memory.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.heads = heads  # type: ignore[attr-defined]
        query, key, value = _split(qkv, heads)
        mixed = torch.empty_like(query)
        for rows in _chunks(query):
            weights = _weights(query[rows], key[rows]).to(qkv.dtype)
            torch.bmm(weights, value[rows], out=mixed[rows])
        return merge_heads(mixed.unflatten(0, (len(qkv), heads)))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (qkv,) = ctx.saved_tensors  # type: ignore[attr-defined]
        heads = ctx.heads  # type: ignore[attr-defined]
        query, key, value = _split(qkv, heads)
        (grad,) = _split(grad, heads, parts=1)
        grads = torch.empty(3, *query.shape, dtype=qkv.dtype)
        for rows in _chunks(query):
            weights = _weights(query[rows], key[rows])
            torch.bmm(weights.to(qkv.dtype).mT, grad[rows], out=grads[2, rows])
            inner = torch.bmm(grad[rows], value[rows].mT).float()
            scores = torch._softmax_backward_data(inner, weights, -1, torch.float32).to(qkv.dtype)
            torch.bmm(scores, key[rows], out=grads[0, rows])
            torch.bmm(scores.mT, query[rows], out=grads[1, rows])
        grads[:2] *= _scale(query)
        return grads.unflatten(1, (len(qkv), heads)).permute(1, 3, 0, 2, 4).flatten(2), None


def _split(joint: Tensor, heads: int, parts: int = 3) -> Tensor:
    """``[B, N, parts D]`` as ``[parts, B heads, N, d]``, contiguous."""
    return joint.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _chunks(query: Tensor) -> Iterator[slice]:
    """Slices of ``[B heads, N, d]`` whose attention weights stay in the cache."""
    total, tokens, _ = query.shape
    size = max(1, CHUNK // tokens**2)
    return (slice(start, start + size) for start in range(0, total, size))


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights ``[heads, N, N]``, float32."""
    return torch.bmm(query.float() * _scale(query), key.float().mT).softmax(-1)


def _scale(query: Tensor) -> float:
    return float(query.shape[-1] ** -0.5)
