"""From face crops to scores: the cut, the model's own preprocessing, the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.checkpoints.opened import Opened
from dfdet.data.crops import crop_side
from dfdet.data.decode import Pixels, cut_middle
from dfdet.data.prepare import pillow_resize
from dfdet.errors import DfdetError
from dfdet.evaluation.evaluate import probabilities
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

    def __call__(self, crops: Sequence[Pixels]) -> FaceScores:
        """Scores of crops, uint8 RGB [s, s, 3] of any sides.

        Raises:
            DfdetError: A score is not finite.
        """
        margins, scores = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
        with torch.no_grad():
            for images in self._inputs(crops):
                found = probabilities(self.opened.detector.head(self.opened.detector(images), None))
                scores.append(found[:, 0].cpu().numpy())
                margins.append(found[:, 1].cpu().numpy())
        faces = FaceScores(np.concatenate(scores), np.concatenate(margins))
        if not np.isfinite(faces.logits).all():
            raise DfdetError(f"--checkpoint {self.opened.source}: its scores are NaN or infinite")
        return faces

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
