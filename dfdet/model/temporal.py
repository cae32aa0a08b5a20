"""The temporal head: features of a clip's frames to one feature of the clip, in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEAD_DIM = 64
"""Width of an attention head, as in the towers; narrower features have one head (dimensions)."""
SLOWEST, FASTEST = 0.5, 32.0
"""Frequencies of the positions (cycles over a video): frames are told apart up to 64 a video."""


class TemporalHead(nn.Module):
    """Mean of a clip's frames plus what an attention with learned queries finds in them.

    ``clip = mean_t x_t + W_o concat_h sum_t a_ht v_ht``, where keys and values come from
    ``LayerNorm(x_t) + positions(t)`` and ``a_h`` is the softmax over the frames of ``q_h k_ht / sqrt d``:
    multi-head attention (arXiv 1706.03762, section 3.2.2) whose queries are parameters, as in the
    pooling of arXiv 1810.00825 (section 3.2). ``W_o`` is 0 at first, so that training starts at the mean,
    and the head of frames is the head of clips too.

    Args:
        dim: Width of the features, even.
        frames: Frames of the clips that it is trained on.
    """

    def __init__(self, dim: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(heads, dim // heads))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Tensor, times: Tensor, valid: Tensor) -> Tensor:
        """Features ``[C, D]`` of clips; zeros where a clip has no valid frame.

        Args:
            features: ``[C, T, D]`` of frames.
            times: ``[C, T]``, when each lies in its video (0 to 1).
            valid: ``[C, T]`` bool; masked frames count nowhere, whatever they hold.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = torch.where(valid[..., None], features.float(), 0.0)
            mean = features.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
            found = self.out(self._attended(features, times, valid))
            return torch.where(valid.any(1, keepdim=True), mean + found, 0.0)

    def of_frames(self, features: Tensor, times: Tensor, valid: Tensor) -> Tensor:
        """Each frame's clip: ``[N, D]`` features to ``[N, D]``, every ``frames`` rows being a clip.

        Args:
            features: ``[N, D]`` of frames.
            times: ``[N]``.
            valid: ``[N]``.
        """
        shape = (-1, self.frames)
        clips = self(features.unflatten(0, shape), times.unflatten(0, shape), valid.unflatten(0, shape))
        return clips[:, None].expand(-1, self.frames, -1).flatten(0, 1)

    def _attended(self, features: Tensor, times: Tensor, valid: Tensor) -> Tensor:
        """``[C, D]``."""
        heads, width = self.query.shape
        seen = self.norm(features) + positions(times, features.shape[-1])
        keys, values = (part(seen).unflatten(-1, (heads, width)) for part in (self.key, self.value))
        fit = (keys * self.query).sum(-1) / math.sqrt(width)  # [C, T, heads]
        # the lowest number, not -inf: a clip of padding alone would be NaN
        weights = fit.masked_fill(~valid[..., None], torch.finfo(fit.dtype).min).softmax(1)
        return (weights[..., None] * values).sum(1).flatten(1)


def positions(times: Tensor, dim: int) -> Tensor:
    """Sines and cosines of times (0 to 1), ``[..., dim]`` float32, from half a cycle to 32 over a video.

    As arXiv 1706.03762, section 3.5, with frequencies for relative times.
    """
    count = dim // 2
    steps = torch.arange(count, device=times.device) / max(1, count - 1)
    angles = times.float()[..., None] * (2 * math.pi * SLOWEST * (FASTEST / SLOWEST) ** steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def build_temporal(dim: int, frames: int, *, seed: int) -> TemporalHead:
    """The temporal head on ``dim`` features; its weights depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TemporalHead(dim, frames)
