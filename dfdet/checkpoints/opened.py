"""A checkpoint as a user names it, opened to score with: ours, or what others published."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from dfdet import published
from dfdet.checkpoints import checkpoint, fetched
from dfdet.checkpoints.resume import check_same_tower, restore
from dfdet.config import Config, from_json
from dfdet.evaluation import threshold
from dfdet.evaluation.threshold import Threshold
from dfdet.model.detector import Detector, build_detector, frozen_sha256, tensors_sha256
from dfdet.schema import CropRecipe

logger = logging.getLogger(__name__)

THRESHOLD = "threshold.json"
"""File of a checkpoint folder."""


@dataclass(frozen=True)
class Opened:
    """A detector ready to score, with what must go with it."""

    source: str
    """As the user named it."""
    folder: Path | None
    """Our checkpoint's folder; None for a published file."""
    config: Config
    """Of the run; for a published file what stands in its place."""
    detector: Detector
    """In evaluation mode, in the precision of its config, on its device."""
    crop: CropRecipe
    """How its training faces were cut."""
    threshold: Threshold | None
    """None where none was fitted."""
    fingerprint: str
    """SHA-256 over trained and frozen tensors: equal for equal models."""


def open_checkpoint(
    source: str, *, device: torch.device | str = "cpu", pretrained: str | None = None
) -> Opened:
    """Opens our checkpoint folder, a run folder (its best, else its last), or a published file or id.

    Args:
        source: A folder, its URL (S3, GCS), a file, or ``hf:OWNER/NAME``.
        device: Where to score.
        pretrained: The tower's weights, where they are not any more where training found them; they must
            be the same.

    Raises:
        WeightsError: There is no checkpoint, it is damaged or of a kind that is not known, or the
            tower's weights are not those it was made with.
        ConfigError: The tower's weights cannot be had.
    """
    if published.is_published(source):
        theirs = published.load(source, device=device)
        logger.info("%s: %s%s", source, theirs.kind, f"; {theirs.note}" if theirs.note else "")
        model = theirs.detector
        whole = fingerprint(model, frozen_sha256(model))
        return Opened(source, None, theirs.config, model, theirs.crop, None, whole)
    path = checkpoint.resolve(Path(fetched.local(source)))
    saved = from_json(path / "config.json")
    config = saved.replace(
        {
            "engine.compile": False,
            "engine.gradient_checkpointing": False,
            "model.pretrained": pretrained or saved.model.pretrained,
        }
    )
    detector = build_detector(config, device=device).eval()
    restore(detector, path)
    frozen = check_same_tower(detector, path, config.model.pretrained)
    fitted = threshold.read(path / THRESHOLD) if (path / THRESHOLD).exists() else None
    crop, whole = checkpoint.load_crop(path), fingerprint(detector, frozen)
    return Opened(source, path, config, detector, crop, fitted, whole)


def fingerprint(detector: Detector, frozen: str) -> str:
    """SHA-256 over the trained and the frozen tensors, given that of the frozen ones."""
    trained = tensors_sha256({name: tensor.detach() for name, tensor in detector.trainable().items()})
    return hashlib.sha256(f"{trained} {frozen}".encode()).hexdigest()
