"""Small CLIP towers that open_clip knows, and runs with such a tower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from open_clip import factory
from safetensors.torch import save_file

from dfdet.config import Model
from dfdet.model.backbone import build_tower

QUICK, PLAIN = "tiny-export-quickgelu", "tiny-export"
SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 48, 2, 4


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Both towers in open_clip's registry, as its own function puts them there."""
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS}
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    paths = []
    for name in (QUICK, PLAIN):
        config = {
            "embed_dim": 16,
            "quick_gelu": name == QUICK,
            "vision_cfg": {**vision, "patch_size": PATCH},
            "text_cfg": text,
        }
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(config))
        open_clip.add_model_config(paths[-1])
    yield
    for path in paths:
        factory._MODEL_CONFIG_PATHS.remove(path)
        del factory._MODEL_CONFIGS[path.stem]


def weights(path: Path, name: str = QUICK) -> Path:
    """A file of such a tower's weights, every one off its initial value, norms and biases among them."""
    config = Model(backbone=name, pretrained=None, image_size=SIDE)
    tower, _ = build_tower(config, seed=4)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        key.removeprefix("visual."): (
            value + 0.05 * torch.randn(value.shape, generator=generator)
        ).contiguous()
        for key, value in tower.state_dict().items()
    }
    save_file(tensors, path)
    return path
