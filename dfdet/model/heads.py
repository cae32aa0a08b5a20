"""Heads: features to two logits, real (0) and fake (1), always in float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.config import Model

CLASSES = 2


class LinearHead(nn.Module):
    """``[N, D]`` features to ``[N, 2]`` logits: optional L2 normalisation, then a linear map with bias.

    arXiv 2503.19683, section 3; with ``normalize`` the released detector's head.
    """

    def __init__(self, dim: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.linear = nn.Linear(dim, CLASSES)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``[N, 2]``; ``labels`` are ignored, as a linear head has no margin."""
        with torch.autocast(features.device.type, enabled=False):
            points = features.float()
            if self.normalize:
                points = F.normalize(points, dim=-1)
            return self.linear(points)  # the call, not its weight: ZeRO 3 gathers by module


class MarginHead(nn.Module, ABC):
    """Scaled cosines between features and class weights, with a margin where labels are given."""

    def __init__(self, dim: int, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin = margin
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(CLASSES, dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``[N, 2]``: with ``labels`` ``[N]`` (training) the label's own cosine pays the margin."""
        with torch.autocast(features.device.type, enabled=False):
            weight = F.normalize(self.weight.float(), dim=-1)
            cosines = F.linear(F.normalize(features.float(), dim=-1), weight)
            if labels is not None and self.margin:
                own = F.one_hot(labels.long(), CLASSES).bool()
                cosines = torch.where(own, self.with_margin(cosines), cosines)
            return self.scale * cosines

    @abstractmethod
    def with_margin(self, cosines: Tensor) -> Tensor:
        """The cosines after the margin, elementwise."""


class CosineHead(MarginHead):
    """Additive cosine margin: ``s (cos - m)`` (CosFace, arXiv 1801.09414)."""

    def with_margin(self, cosines: Tensor) -> Tensor:
        """``cos - m``."""
        return cosines - self.margin


class AngularHead(MarginHead):
    """Additive angular margin: ``s cos(theta + m)`` (ArcFace, arXiv 1801.07698)."""

    def with_margin(self, cosines: Tensor) -> Tensor:
        """``cos(theta + m)``, continued by ``cos - m sin m`` past ``theta = pi - m``.

        ``cos(theta + m)`` rises again there, which would reward a sample for being more wrong; the
        continuation (of the authors' code) keeps falling. At the seam it drops by
        ``cos m + m sin m - 1 >= 0``, so the loss stays monotone in theta.
        """
        sines = (1 - cosines.square()).clamp_min(1e-7).sqrt()  # the clamp bounds d sin / d cos at cos = 1
        shifted = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        beyond = cosines - self.margin * math.sin(self.margin)
        return torch.where(cosines > math.cos(math.pi - self.margin), shifted, beyond)


def build_head(config: Model, dim: int, *, seed: int) -> nn.Module:
    """The head of ``config`` on ``dim`` features; its weights depend on ``seed`` only.

    The module maps features ``[N, dim]`` and labels ``[N]`` or None to float32 logits ``[N, 2]``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.head == "linear":
            return LinearHead(dim, normalize=config.normalize)
        kind = {"cosine": CosineHead, "angular": AngularHead}[config.head]
        return kind(dim, margin=config.margin, scale=config.scale)
