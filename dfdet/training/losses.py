"""Losses on features of the global batch, in float32 outside autocast.

Every function takes ``valid [N]`` (bool): a masked row changes neither value nor gradient. Nothing
here waits for the device. A term that the batch cannot define (one sample, no pair) is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.config import Loss
from dfdet.data.hashing import chain, uniforms

CLASSES = 2
UNIFORMITY_FLOOR = math.log(1e-6)
NEARLY_PARALLEL = 1 - 1e-6
"""|cos| from which slerp's weights come from their limit: sin(theta) is below .0014 there."""

Key = tuple[int, int, int]
"""Seed, epoch, batch: what the randomness of slerp belongs to."""
Head = Callable[[Tensor, Tensor | None], Tensor]


def alignment(z: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Label-aware alignment: mean over i < j with y_i = y_j of ||z_i - z_j||^2.

    arXiv 2503.19683, section 3 (after arXiv 2005.10242). Computed in O(N D) from
    ``sum over pairs of a class = n_c sum_i ||z_i - mean_c||^2``; centring keeps it exact where points
    coincide.

    Args:
        z: ``[N, D]`` unit vectors.
        labels: ``[N]`` classes.
        valid: ``[N]`` mask.
    """
    with torch.autocast(z.device.type, enabled=False):
        classes = torch.arange(CLASSES, device=labels.device)  # not one_hot, which waits for the device
        members = (labels[:, None] == classes).float() * valid[:, None]  # [N, C]
        points = _zero_masked(z, valid)
        counts = members.sum(0)
        means = members.T @ points / counts.clamp_min(1)[:, None]
        spread = (points - members @ means).square().sum(1) * valid  # [N]
        pairs = (counts * (counts - 1) / 2).sum()
        return (spread * (members @ counts)).sum() / pairs.clamp_min(1)


def uniformity(z: Tensor, valid: Tensor, t: float = 2.0) -> Tensor:
    """Uniformity: ``log max(mean over i < j of exp(-t ||z_i - z_j||^2), 1e-6)``.

    arXiv 2005.10242, equation 3, with the floor of arXiv 2503.19683's code. A logsumexp over the
    Gram matrix of the centred points less ``log n (n - 1)``; no square root, so that the gradient is
    finite at coinciding points.

    Args:
        z: ``[N, D]`` unit vectors.
        valid: ``[N]`` mask.
        t: Sharpness of the Gaussian kernel.
    """
    with torch.autocast(z.device.type, enabled=False):
        count = valid.sum()
        points = _zero_masked(z, valid)
        points = points - points.sum(0, keepdim=True) / count.clamp_min(1)
        norms = points.square().sum(1)
        squared = norms[:, None] + norms[None, :] - 2 * points @ points.T  # [N, N]
        counted = valid[:, None] & valid[None, :] & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        # Without a pair every entry would be -inf and logsumexp's gradient NaN: 0 keeps it finite.
        filler = torch.where(count > 1, -math.inf, 0.0)
        exponents = torch.where(counted, -t * squared, filler)
        pairs = (count * (count - 1)).clamp_min(1)
        value = (exponents.flatten().logsumexp(0) - pairs.log()).clamp_min(UNIFORMITY_FLOOR)
        return torch.where(count > 1, value, torch.zeros_like(value))


def cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``[N, 2]`` logits over the valid rows, targets smoothed uniformly.

    Smoothing: arXiv 1512.00567, section 7.
    """
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(
            _zero_masked(logits, valid),
            safe_labels(labels, valid),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return (losses * valid).sum() / valid.sum().clamp_min(1)


def slerp_partners(labels: Tensor, valid: Tensor, key: Key, first: int = 0) -> Tensor:
    """For each row another of its class: a random permutation within each class, ``[N]`` int64.

    Depends on ``key``, the labels and the positions ``first .. first + N`` only, so it is the same on
    every device and for every split of the batch over ranks. A row alone in its class, and a masked
    row, has itself for partner.
    """
    classes = torch.where(valid, labels.long(), CLASSES)  # masked rows shuffle among themselves
    keys = chain(*key, range(first, first + len(labels)), 0) >> 1  # 63 bits: int64 holds them
    shuffled = torch.from_numpy(keys.astype("int64")).to(labels.device, non_blocking=True)
    shuffled = shuffled.argsort(stable=True)
    shuffled = shuffled[classes[shuffled].argsort(stable=True)]  # by class, then by hash
    ordered = classes.argsort(stable=True)  # by class, then by position
    partners = torch.empty_like(ordered)
    partners[ordered] = shuffled
    return torch.where(valid, partners, torch.arange(len(labels), device=labels.device))


def slerp_positions(
    count: int, key: Key, low: float, high: float, *, first: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Positions on the arc, ``[count]`` float32 in ``[low, high)``, from the hash of ``key`` and row."""
    draws = uniforms(chain(*key, range(first, first + count), 1), 1)[:, 0]
    return torch.from_numpy((low + (high - low) * draws).astype("float32")).to(device, non_blocking=True)


def slerp(z: Tensor, partners: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation: ``(sin((1-t) a) z_i + sin(t a) z_p(i)) / sin a``, ``cos a = z_i z_p(i)``.

    Shoemake 1985; as augmentation in arXiv 2503.19683. In float32: in bfloat16 the usual clamp at
    1 - 1e-7 is none, and a row that is its own partner gives NaN. Where the two nearly coincide the
    weights take their limit (1 - t, t); where they are antipodal no arc is distinguished and z_i stays.

    Args:
        z: ``[N, D]`` unit vectors.
        partners: ``[N]`` row of each one's partner.
        t: ``[N]`` positions, 0 at the row, 1 at the partner.

    Returns:
        ``[N, D]`` unit vectors.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, t = z.float(), t.float()[:, None]
        other = z[partners]
        cosine = (z * other).sum(1, keepdim=True)
        inside = cosine.abs() < NEARLY_PARALLEL
        angle = torch.where(inside, cosine, 0.0).acos()  # the inner where keeps acos' gradient finite
        same = (cosine > 0).to(z.dtype)
        own = torch.where(inside, ((1 - t) * angle).sin() / angle.sin(), 1 - t * same)
        toward = torch.where(inside, (t * angle).sin() / angle.sin(), t * same)
        return F.normalize(own * z + toward * other, dim=1)


def safe_labels(labels: Tensor, valid: Tensor) -> Tensor:
    """Labels ``[N]`` with 0 in masked rows, which may hold anything."""
    return torch.where(valid, labels.long(), 0)


def _zero_masked(rows: Tensor, valid: Tensor) -> Tensor:
    """Float32 rows with masked ones 0, so that not even a NaN gets through."""
    return torch.where(valid[:, None], rows.float(), 0.0)


@dataclass(frozen=True)
class Terms:
    """Loss terms of a batch, scalars; ``total`` has the graph, terms of weight 0 are for the record."""

    total: Tensor
    ce: Tensor
    alignment: Tensor
    uniformity: Tensor


class DetectionLoss(nn.Module):
    """Total = ce CE + alignment A + uniformity U (arXiv 2503.19683; weights of ``gend``: 2508.06248).

    Features are L2-normalised for the pairwise terms. With slerp (training only: do not call this for
    evaluation) each unit feature is *replaced* for all terms, as in the paper's code; the head sees the
    replacement at the sample's own feature norm, so that a head on raw features keeps its scale. Without
    slerp the head sees the features themselves and normalises them if it was built to.
    """

    def __init__(self, config: Loss) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, features: Tensor, labels: Tensor, valid: Tensor, head: Head, key: Key, first: int = 0
    ) -> Terms:
        """The loss of a batch.

        Args:
            features: ``[N, D]`` of the batch that the pairwise terms and slerp see.
            labels: ``[N]`` classes, 0 real, 1 fake; anything where masked.
            valid: ``[N]`` bool; masked rows count nowhere.
            head: Maps features and labels to logits ``[N, 2]``.
            key: Seed, epoch and batch, which with the row's position decide partners and arc positions.
            first: Position of the first row in the global batch (0 where the rows are the batch).
        """
        with torch.autocast(features.device.type, enabled=False):
            # 1 instead of 0 in masked rows: normalising 0 multiplies gradients by 1e12.
            features = torch.where(valid[:, None], features.float(), 1.0)
            z = F.normalize(features, dim=1)
            if self.config.slerp:
                z = self._slerp(z, labels, valid, key, first)
                features = z * features.norm(dim=1, keepdim=True)
            logits = head(features, safe_labels(labels, valid))
            ce = cross_entropy(logits, labels, valid, self.config.label_smoothing)
            aligned = alignment(z if self.config.alignment else z.detach(), labels, valid)
            uniform = uniformity(z if self.config.uniformity else z.detach(), valid)
            return Terms(self._total(ce, aligned, uniform), ce.detach(), aligned.detach(), uniform.detach())

    def _slerp(self, z: Tensor, labels: Tensor, valid: Tensor, key: Key, first: int) -> Tensor:
        partners = slerp_partners(labels, valid, key, first)
        low, high = self.config.slerp_low, self.config.slerp_high
        return slerp(z, partners, slerp_positions(len(z), key, low, high, first=first, device=z.device))

    def _total(self, ce: Tensor, aligned: Tensor, uniform: Tensor) -> Tensor:
        weighted = ((self.config.ce, ce), (self.config.alignment, aligned), (self.config.uniformity, uniform))
        terms = [weight * term for weight, term in weighted if weight]  # 0 x NaN would be NaN
        return torch.stack(terms or [torch.zeros_like(ce)]).sum()
