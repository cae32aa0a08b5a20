"""Weights of a tower alone are refused as detectors, and train one through ``model.pretrained``."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfdet.config import Config, Engine, Model
from dfdet.errors import WeightsError
from dfdet.model.detector import build_detector
from dfdet.published import load
from tests.dfdet.published.authors import SIDE, TINY, Reference


def features(path: Path, images: Tensor) -> Tensor:
    config = Config(
        model=Model(backbone=TINY, pretrained=str(path), image_size=SIDE), engine=Engine(precision="fp32")
    )
    with torch.no_grad():
        return build_detector(config).eval()(images)


def hugging_face_file(path: Path, reference: Reference) -> Path:
    """CLIP as transformers saves it: vision under its prefix, both projections and text beside it."""
    vision = {
        k.removeprefix("feature_extractor."): v
        for k, v in reference.state_dict().items()
        if k.startswith("feature_extractor.")
    }
    text = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(2.0)}
    save_file({k: v.contiguous() for k, v in (vision | text).items()}, path)
    return path


def openai_file(path: Path) -> Path:
    """A state dict of OpenAI's names, in their half precision."""
    torch.manual_seed(1)
    model = open_clip.create_model(TINY)
    torch.save({k: v.half() for k, v in model.state_dict().items()}, path)
    return path


def test_hugging_face_clip_is_no_detector(tmp_path: Path, reference: Reference) -> None:
    path = hugging_face_file(tmp_path / "clip.safetensors", reference)
    with pytest.raises(
        WeightsError, match=r"Hugging Face CLIP weights: a tower without a head.*--model\.pre"
    ):
        load(str(path))


def test_openai_weights_are_no_detector(tmp_path: Path) -> None:
    path = openai_file(tmp_path / "openai.pt")
    with pytest.raises(WeightsError, match=r"OpenAI or open_clip weights: a tower without a head"):
        load(str(path))


def test_hugging_face_clip_as_pretrained_gives_its_features(
    tmp_path: Path, reference: Reference, images: Tensor
) -> None:
    path = hugging_face_file(tmp_path / "clip.safetensors", reference)
    with torch.no_grad():
        theirs = reference.features(reference.feature_extractor, images)
    torch.testing.assert_close(features(path, images), theirs, rtol=0, atol=1e-5)


def test_openai_weights_as_pretrained_give_their_features(tmp_path: Path, images: Tensor) -> None:
    path = openai_file(tmp_path / "openai.pt")
    visual = open_clip.create_model(TINY).visual
    state = torch.load(path, weights_only=True)
    visual.load_state_dict({k.removeprefix("visual."): v.float() for k, v in state.items() if "visual." in k})
    visual.proj = None
    with torch.no_grad():
        theirs = visual.eval()(images)
    torch.testing.assert_close(features(path, images), theirs, rtol=0, atol=1e-5)


def test_a_torchscript_archive_as_pretrained_is_refused(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "ViT.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(
        WeightsError, match="TorchScript are refused: give a safetensors file or a saved state"
    ):
        features(path, images)
