"""The ``tiny`` tower: a small Vision Transformer for demos and tests, without pretrained weights.

What pretraining gives a real tower, a fixed stem gives this one: the patch embedding is the 2-D DCT
of JPEG in luma and chroma, with the logarithm of each frequency's energy (a classic of image
forensics). The blocks above it are random and stay frozen; LN-tuning selects and mixes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
CELL_PX = 8
"""Side of a DCT cell, as in JPEG (pixels)."""
PATCH_PX = 16
"""Side of a token: 2 x 2 cells (pixels)."""
LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""RGB to YCbCr of JPEG (JFIF)."""


def dct_bank(cell_px: int = CELL_PX) -> Tensor:
    """Filters of the orthonormal 2-D DCT-II in luma and chroma [3 * cell_px**2, 3, cell_px, cell_px]."""
    n = torch.arange(cell_px, dtype=torch.float64)
    basis = torch.cos(math.pi * (n[None] + 0.5) * n[:, None] / cell_px) * math.sqrt(2 / cell_px)
    basis[0] /= math.sqrt(2)
    planes = torch.einsum("ui,vj->uvij", basis, basis).flatten(0, 1)
    colours = torch.tensor(LUMA_CHROMA, dtype=torch.float64)
    return torch.einsum("fij,kc->kfcij", planes, colours).flatten(0, 1).float()


class DctStem(nn.Module):
    """Images ``[B, 3, H, W]`` to tokens ``[B, N, width]``: log-energy by frequency, and mean colours.

    The energies are normalised by nothing and need float32: the weight is read outside of autocast,
    so this linear is neither stored in bfloat16 nor given LoRA updates.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        bank = dct_bank()
        numbers = torch.arange(len(bank))
        is_mean = numbers % CELL_PX**2 == 0
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("means", numbers[is_mean], persistent=False)
        self.register_buffer("details", numbers[~is_mean], persistent=False)
        self.embed = nn.Linear(len(bank) - 3 + 3 * 4, width, bias=False)
        nn.init.orthogonal_(self.embed.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens, float32."""
        with torch.autocast(images.device.type, enabled=False):
            cells = F.conv2d(images.float(), self.get_buffer("bank"), stride=CELL_PX)
            energy = F.avg_pool2d(cells[:, self.get_buffer("details")].square(), 2)
            energy = (energy + 1e-4).log().flatten(2).mT * 0.5 + 3.0
            colour = F.pixel_unshuffle(cells[:, self.get_buffer("means")], 2).flatten(2).mT / 4
            return F.linear(torch.cat([energy, colour], -1), self.embed.weight.float())


class Attention(nn.Module):
    """Multi-head self-attention over ``[B, N, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.orthogonal_(self.qkv.weight)
        with torch.no_grad():
            self.qkv.weight[: 2 * width] *= 3**0.5  # sharper attention than a unit gain gives
        nn.init.orthogonal_(self.proj.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mixed tokens ``[B, N, width]``."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between; random biases spread where it bends."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        nn.init.orthogonal_(self.fc1.weight, 1.5)
        nn.init.normal_(self.fc1.bias, std=0.5)
        nn.init.orthogonal_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, width]``."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; the residual stream stays float32."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, width]``, float32."""
        x = x + self.attn(self.ln_1(x)).float()
        return x + self.mlp(self.ln_2(x)).float()


class TinyViT(nn.Module):
    """Small random ViT over DCT energies: normalised images ``[B, 3, H, W]`` to features ``[B, width]``.

    Args:
        image_size: Side of the input, a multiple of 16 (pixels).
        width: Channels of a token, and of the feature, the mean of all tokens.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(self, image_size: int = 96, width: int = 192, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        if image_size % PATCH_PX:
            raise ValueError(f"image_size={image_size}: the tiny tower needs a multiple of {PATCH_PX}")
        self.image_size, self.output_dim = image_size, width
        self.grad_checkpointing = False
        self.stem = DctStem(width)
        self.pos = nn.Parameter(torch.randn(1, (image_size // PATCH_PX) ** 2, width) * 0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, 2 * width) for _ in range(depth))
        self.ln_post = nn.LayerNorm(width)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, width]``, float32."""
        x = self.ln_pre(self.stem(images) + self.pos.float())
        for block in self.blocks:
            # towers are always in eval mode, so `training` would not tell
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.ln_post(x).mean(1)
