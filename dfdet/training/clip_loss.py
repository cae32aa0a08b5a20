"""The loss of clips: cross-entropy of their own logits, and how far frames agree with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfdet.config import Loss
from dfdet.model.temporal import TemporalHead
from dfdet.training.gather import Rows
from dfdet.training.losses import Terms, cross_entropy, safe_labels

FAKE = 1


@dataclass(frozen=True)
class ClipTerms(Terms):
    """Loss terms of a batch of clips."""

    clip: Tensor
    """Mean over frames of their clip's cross-entropy: a clip counts by its frames, as in a video's score."""
    consistency: Tensor
    """Mean over frames of the squared distance of their fake probability from their clip's."""


def with_clips(terms: Terms, config: Loss, rows: Rows, head: nn.Module, temporal: TemporalHead) -> ClipTerms:
    """The terms of frames with those of their clips added to the total, by ``loss.clip`` and
    ``loss.consistency``.

    Frames are drawn to their clip, not the clip to them: its probability carries no gradient there. Clips
    are of the features as they are, before slerp mixes videos.

    Args:
        terms: Of the frames.
        config: Weights, label smoothing.
        rows: The batch, whole clips.
        head: Of frames and clips: features and labels to logits ``[N, 2]``.
        temporal: Pools the frames of a clip.
    """
    features, labels, valid, times = rows
    assert times is not None
    with torch.autocast(features.device.type, enabled=False):
        clips = temporal.of_frames(features, times, valid)  # [N, D]
        # 1 instead of 0 in masked rows: normalising 0 multiplies gradients by 1e12
        clips = torch.where(valid[:, None], clips, 1.0)
        logits = head(clips, safe_labels(labels, valid))
        clip = cross_entropy(logits, labels, valid, config.label_smoothing)
        frames = torch.where(valid[:, None], features.float(), 1.0)
        consistency = _distance(_probability(head, frames), _probability(head, clips).detach(), valid)
        total = terms.total
        for weight, term in ((config.clip, clip), (config.consistency, consistency)):
            total = total + weight * term if weight else total  # 0 x NaN would be NaN
    return ClipTerms(total, terms.ce, terms.alignment, terms.uniformity, clip.detach(), consistency.detach())


def _probability(head: nn.Module, features: Tensor) -> Tensor:
    """Of fake, ``[N]``, without margins."""
    return head(features, None).softmax(1)[:, FAKE]


def _distance(frames: Tensor, clips: Tensor, valid: Tensor) -> Tensor:
    return ((frames - clips).square() * valid).sum() / valid.sum().clamp_min(1)
