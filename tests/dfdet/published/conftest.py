"""A small CLIP tower that open_clip knows, and the published detector on it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import open_clip
import pytest
import torch
from open_clip import factory
from torch import Tensor

from tests.dfdet.published.authors import HEADS, LAYERS, PATCH, SIDE, TINY, WIDTH, Reference, clip_reference


@pytest.fixture(scope="session", autouse=True)
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small tower in open_clip's registry, as its own function puts it there."""
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS}
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {**vision, "patch_size": PATCH},
        "text_cfg": text,
    }
    path = tmp_path_factory.mktemp("open_clip") / f"{TINY}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    yield TINY
    factory._MODEL_CONFIG_PATHS.remove(path)
    del factory._MODEL_CONFIGS[TINY]


@pytest.fixture
def reference() -> Reference:
    return clip_reference()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
