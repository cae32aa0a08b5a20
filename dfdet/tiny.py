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
    """Images [B, 3, H, W] to tokens [B, N, width]: log-energy by frequency, and signed mean colour."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bank = dct_bank()
        self.register_buffer("bank", bank, persistent=False)
        dc = torch.zeros(len(bank), dtype=torch.bool)
        dc[:: CELL_PX**2] = True
        self.register_buffer("dc", dc.nonzero().flatten(), persistent=False)
        self.register_buffer("ac", (~dc).nonzero().flatten(), persistent=False)
        features = len(bank) - 3 + 3 * 4
        self.embed = nn.Linear(features, width, bias=False)
        nn.init.orthogonal_(self.embed.weight)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            cells = F.conv2d(images.float(), self.bank, stride=CELL_PX)
            energy = F.avg_pool2d(cells[:, self.ac].square(), 2)
            energy = (energy + 1e-4).log().flatten(2).mT * 0.5 + 3.0
            colour = F.pixel_unshuffle(cells[:, self.dc], 2).flatten(2).mT / 4
            return F.linear(torch.cat([energy, colour], -1), self.embed.weight.float())


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; the residual stream stays float32."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x)).float()
        return x + self.mlp(self.ln_2(x)).float()


class TinyViT(nn.Module):
    """Small random ViT over DCT energies: images [B, 3, H, W], normalised, to features [B, output_dim].

    Args:
        image_size: Side of the input, a multiple of 16 (pixels).
        width: Channels of a token, and of the feature.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(
        self, image_size: int = 64, width: int = 192, depth: int = 4, heads: int = 4, mlp_ratio: float = 2.0,
        gains=(1.0, 3.0, 1.0, 1.5, 1.0, 0.5),
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % PATCH_PX:
            raise ValueError(f"image_size={image_size}: the tiny tower needs a multiple of {PATCH_PX}")
        self.image_size, self.output_dim = image_size, width
        self.grad_checkpointing = False
        self.stem = DctStem(width)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, (image_size // PATCH_PX) ** 2, width) * gains[5])
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.ln_post = nn.LayerNorm(width)
        self.gains = gains
        self._init()

    def _init(self) -> None:
        g = self.gains
        for block in self.blocks:
            nn.init.orthogonal_(block.attn.qkv.weight, g[0])
            w = self.output_dim
            with torch.no_grad():
                block.attn.qkv.weight[: 2 * w] *= g[1] ** 0.5
            nn.init.zeros_(block.attn.qkv.bias)
            nn.init.orthogonal_(block.attn.proj.weight, g[2])
            nn.init.zeros_(block.attn.proj.bias)
            nn.init.orthogonal_(block.mlp.fc1.weight, g[3])
            nn.init.normal_(block.mlp.fc1.bias, std=0.5)
            nn.init.orthogonal_(block.mlp.fc2.weight, g[4])
            nn.init.zeros_(block.mlp.fc2.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images)
        tokens = tokens / tokens.std(dim=-1, keepdim=True).clamp_min(1e-3) if False else tokens
        x = tokens + self.pos.float()
        x = self.ln_pre(x)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.ln_post(x).mean(1)
