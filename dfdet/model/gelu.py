"""QuickGELU that keeps only its input for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

SLOPE = 1.702


class QuickGelu(nn.Module):
    """``x sigmoid(1.702 x)`` (arXiv 1606.08415, section 2), as CLIP's towers have it.

    Plain autograd keeps two tensors as wide as the hidden layer, a third of a block's activations; here
    the backward computes the sigmoid again. Torch's own GELU keeps only its input already.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, in the type of ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _QuickGelu.apply(x)
        return _quick_gelu(x)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _quick_gelu(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        # x sigmoid(s x) = silu(s x) / s, whose derivative is silu'(s x): one fused kernel
        return torch.ops.aten.silu_backward(grad, SLOPE * x)


def _quick_gelu(x: Tensor) -> Tensor:
    return (SLOPE * x).sigmoid_().mul_(x)
