"""The layout for transformers gives the detector's logits, in transformers and read back by ourselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import LayerScale
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, CLIPVisionConfig

from dfdet import published
from dfdet.config import Config, Model, Tuning
from dfdet.errors import ConfigError
from dfdet.export import hugging_face
from dfdet.export.graph import Deployed, whole_state
from dfdet.model.detector import Detector, build_detector
from dfdet.model.weights import from_hugging_face
from tests.dfdet.export.clips import PLAIN, QUICK, SIDE, WIDTH

pytestmark = pytest.mark.usefixtures("clips")


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers keeps a copy of a folder's code in its cache, by the folder's name."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def detector(**model: object) -> Detector:
    config = Config(
        model=Model(**{"backbone": QUICK, "pretrained": None, "image_size": SIDE, **model}),
        tuning=Tuning(mode="ln"),
    ).replace({"engine.precision": "fp32"})
    made = build_detector(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def written(folder: Path, made: Detector, backbone: str = QUICK) -> Path:
    hugging_face.check(made, backbone)
    model = Deployed(made.tower, made.head, made.preprocess)
    hugging_face.write(folder, model, whole_state(model), backbone)
    return folder


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def logits(made: Detector, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = made.head(made(images), None)
    assert found.std() > 1e-3  # images differ in their logits: equality says something
    return found


HEADS = [
    {"normalize": True},
    {"normalize": False},
    {"head": "cosine", "margin": 0.2, "scale": 12.0},
    {"head": "angular", "margin": 0.2},
]


@pytest.mark.parametrize("head", HEADS, ids=["l2", "plain", "cosine", "angular"])
def test_transformers_gives_the_same_logits(head: dict[str, object], tmp_path: Path, images: Tensor) -> None:
    made = detector(**head)
    folder = written(tmp_path / "huggingface", made)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found = model(images).logits
    torch.testing.assert_close(found, logits(made, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=["l2", "plain", "cosine", "angular"])
def test_what_reads_published_files_gives_the_same_logits(
    head: dict[str, object], tmp_path: Path, images: Tensor
) -> None:
    made = detector(**head)
    theirs = published.load(str(written(tmp_path / "huggingface", made))).detector
    torch.testing.assert_close(logits(theirs, images), logits(made, images), rtol=0, atol=1e-5)


def test_a_tower_of_plain_gelu_keeps_it(tmp_path: Path, images: Tensor) -> None:
    made = detector(backbone=PLAIN)
    folder = written(tmp_path / "huggingface", made, PLAIN)
    assert json.loads((folder / "config.json").read_text())["vision_config"]["hidden_act"] == "gelu"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found = model(images).logits
    torch.testing.assert_close(found, logits(made, images), rtol=0, atol=1e-5)


def test_names_go_there_and_back() -> None:
    tensors = dict(detector().tower.visual.state_dict())
    back = from_hugging_face(hugging_face.to_hugging_face(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_processor_makes_the_input_of_training(tmp_path: Path) -> None:
    made = detector()
    processor = AutoImageProcessor.from_pretrained(written(tmp_path / "huggingface", made))
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    crop = Image.fromarray(coarse).resize((61, 61), Image.Resampling.BICUBIC)
    theirs = processor(crop, return_tensors="pt")["pixel_values"]
    ours = made.to_input(torch.from_numpy(np.asarray(crop).copy())[None])
    levels = (theirs - ours).abs() * 255 * 0.28  # CLIP's deviations are .26 to .28
    assert theirs.shape == (1, 3, SIDE, SIDE)
    assert levels.max() <= 2.1
    assert levels.mean() < 0.05


def test_openais_towers_have_their_published_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "huggingface", detector(), "ViT-L-14-quickgelu")
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone"] == "openai/clip-vit-large-patch14"
    assert config["head"] == "LinearNorm"
    assert CLIPVisionConfig(**config["vision_config"]).num_attention_heads == 4


@pytest.mark.parametrize(
    ("backbone", "cause"),
    [("tiny", "is no CLIP tower"), ("timm/vit_tiny_patch16_224", "is no CLIP tower"), ("RN50", "is no CLIP")],
)
def test_a_tower_without_such_a_layout_is_refused(backbone: str, cause: str) -> None:
    config = Config(model=Model(backbone=backbone, pretrained=None, image_size=32))
    with pytest.raises(ConfigError, match=f"--hugging_face: {backbone} {cause}.*leave the flag out"):
        hugging_face.check(build_detector(config), backbone)


def test_a_clip_tower_with_scaled_layers_is_refused() -> None:
    made = detector()
    made.tower.visual.transformer.resblocks[1].ls_1 = LayerScale(WIDTH)
    with pytest.raises(ConfigError, match="has other blocks than CLIP's"):
        hugging_face.check(made, QUICK)


def test_equal_detectors_give_equal_bytes(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name, detector()) for name in ("one", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
