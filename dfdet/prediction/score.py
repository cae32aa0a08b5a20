"""From face crops to scores: the cut, the model's own preprocessing, the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.checkpoints.opened import Opened
from dfdet.data.clips import Times, clips_in_order
from dfdet.data.crops import crop_side
from dfdet.data.decode import Pixels, cut_middle
from dfdet.data.prepare import pillow_resize
from dfdet.errors import DfdetError
from dfdet.evaluation.aggregate import TEMPORAL
from dfdet.evaluation.evaluate import probabilities
from dfdet.model.temporal import TemporalHead
from dfdet.prediction.evidence import evidence

MAX_SIDE = 1024
"""Larger cuts are shrunk to it (area mean), as training's loader does (pixels)."""
BATCH = 32


@dataclass(frozen=True)
class FaceScores:
    """What the model says of n faces."""

    scores: NDArray[np.float32]
    """Fake probabilities ``[n]`` (0 to 1), before any temperature."""
    logits: NDArray[np.float32]
    """Fake minus real logit ``[n]``."""
    of_clips: FaceScores | None = None
    """Of each face's clip, where the model has a temporal head and was told who is who."""

    def for_aggregate(self, how: str) -> FaceScores:
        """What ``how`` makes one score of: faces, or for ``temporal`` their clips."""
        if how != TEMPORAL:
            return self
        assert self.of_clips is not None  # refused before a file is opened
        return self.of_clips


@dataclass(frozen=True)
class Seen:
    """Who is on each of n crops, and when: what clips are made of."""

    video: NDArray[np.int64]
    """Person ``[n]``, from 0."""
    frame: NDArray[np.int64]
    """Place of the frame in the video ``[n]``."""


class Scorer:
    """A checkpoint that scores faces as its own evaluation does, crop by crop.

    Args:
        opened: The checkpoint.
        stored_scale: Margin that the crops have, as a multiple of the tight face; None where it is
            unknown: they are used whole.
        batch: Faces in one forward pass. The last digits of a score may depend on it, and on nothing else
            that is in the batch.
    """

    def __init__(self, opened: Opened, stored_scale: float | None, batch: int = BATCH) -> None:
        self.opened, self.batch = opened, batch
        self.stored_scale = float("nan") if stored_scale is None else stored_scale
        self.device = next(opened.detector.parameters()).device

    @torch.no_grad()
    def __call__(self, crops: Sequence[Pixels], seen: Seen | None = None) -> FaceScores:
        """Scores of crops, uint8 RGB [s, s, 3] of any sides.

        Args:
            crops: Of faces.
            seen: Who is on them, for scores of clips.

        Raises:
            DfdetError: A score is not finite.
        """
        detector = self.opened.detector
        if not len(crops):
            return FaceScores(np.zeros(0, np.float32), np.zeros(0, np.float32))
        features = torch.cat([detector(images) for images in self._inputs(crops)])
        faces = self._scores(features)
        if seen is not None and detector.temporal is not None:
            clips = self._clip_features(detector.temporal, features, seen)
            faces = replace(faces, of_clips=self._scores(clips))
        return faces

    def _scores(self, features: Tensor) -> FaceScores:
        found = probabilities(self.opened.detector.head(features, None)).cpu().numpy()
        if not np.isfinite(found).all():
            raise DfdetError(f"--checkpoint {self.opened.source}: its scores are NaN or infinite")
        return FaceScores(found[:, 0], found[:, 1])

    def _clip_features(self, temporal: TemporalHead, features: Tensor, seen: Seen) -> Tensor:
        """Each face's clip ``[n, D]``: those that an evaluation makes of these frames."""
        clips = clips_in_order(seen, temporal.frames)
        numbers = np.arange(len(clips))
        ids, valid = clips.samples(numbers).reshape(-1), clips.valid(numbers).reshape(-1)
        columns = (ids, valid, Times(seen)(ids))
        rows, kept, times = (torch.from_numpy(column).to(self.device) for column in columns)
        pooled = torch.empty_like(features)
        pooled[rows[kept]] = temporal.of_frames(features[rows], times, kept)[kept]
        return pooled

    def evidence(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """Heat maps [n, h, w] of crops, over what :meth:`cut` leaves of them."""
        maps = [evidence(self.opened.detector, images).cpu().numpy() for images in self._inputs(crops)]
        return np.concatenate(maps) if maps else np.zeros((0, 1, 1), np.float32)

    def cut(self, crop: Pixels) -> Pixels:
        """What the model sees of a crop, before its resize."""
        height, width = crop.shape[:2]
        scale = self.opened.config.data.crop_scale
        return cut_middle(crop, crop_side(width, height, scale, self.stored_scale))

    def _inputs(self, crops: Sequence[Pixels]) -> Iterator[Tensor]:
        for start in range(0, len(crops), self.batch):
            cuts = [self._sized(self.cut(crop)) for crop in crops[start : start + self.batch]]
            sides = [len(cut) for cut in cuts]
            images = np.zeros((len(cuts), max(sides), max(sides), 3), np.uint8)
            for row, cut, side in zip(images, cuts, sides, strict=True):
                row[:side, :side] = cut
            given = torch.from_numpy(images).to(self.device)
            yield self.opened.detector.to_input(given, torch.tensor(sides))

    def _sized(self, cut: Pixels) -> Pixels:
        preprocess = self.opened.detector.preprocess
        if self.opened.config.data.resize == "pillow":
            return pillow_resize(cut, preprocess.image_size, preprocess.interpolation)
        if len(cut) > MAX_SIDE:
            return cv2.resize(cut, (MAX_SIDE, MAX_SIDE), interpolation=cv2.INTER_AREA)
        return cut
