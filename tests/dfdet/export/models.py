"""Small detectors for tests of export."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from dfdet.config import Config
from dfdet.export.graph import Deployed
from dfdet.model.detector import Detector, build_detector

CLIP = "dfdet-test-export-quickgelu"
TIMM = "timm/test_vit"
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
KINDS = {
    "tiny": {"model.head": "angular", "model.margin": 0.2},
    CLIP: {"model.normalize": False, "tuning.mode": "lora"},
    TIMM: {"tuning.mode": "lora"},
}
"""The detectors whose graphs are tested."""
BATCHES = ((1, 96), (33, 224), (2, 317))
"""Crops and their sides (pixels)."""


def register_small_clip(folder: Path) -> None:
    """Puts a CLIP of two blocks into open_clip's registry."""
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / f"{CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def detector_of(backbone: str, **values: Any) -> Detector:
    """A detector of random weights, what trains off its initial values."""
    sizes = {"tiny": 96, TIMM: 160}
    config = Config().replace(
        {
            "model.backbone": backbone,
            "model.pretrained": None,
            "model.image_size": sizes.get(backbone, 32),
            "engine.precision": "fp32",
            **values,
        }
    )
    detector = build_detector(config).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in detector.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


@functools.cache
def shared(backbone: str) -> Deployed:
    """The detector of ``KINDS``, one for all tests: tracing it takes seconds."""
    return deployed_of(detector_of(backbone, **KINDS[backbone]))


def deployed_of(detector: Detector) -> Deployed:
    """The detector itself, its LoRA merged, behind its preprocessing."""
    return Deployed(detector.tower, detector.head, detector.preprocess)


def crops_of(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of many frequencies, with crops that differ in brightness and contrast."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (count, side, side, 3)).cumsum(1) / 4 + rng.normal(0, 1, (count, side, side, 3))
    scale, shift = rng.uniform(5, 60, (2, count, 1, 1, 1))
    return np.clip(noise * scale + 2 * shift + 40, 0, 255).astype(np.uint8)


@torch.no_grad()
def eager(model: Deployed, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and logits of the module."""
    scores, logits = model(torch.from_numpy(crops))
    return scores.numpy(), logits.numpy()
