"""The authors' side: reference detectors on transformers' or timm's own towers, and files of their form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, DINOv3ViTConfig, DINOv3ViTModel

TINY = "tiny-published-quickgelu"
SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 64, 2, 4


def shaken(module: nn.Module) -> nn.Module:
    """The module with every parameter off its initial value, norms and biases among them."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


class Reference(nn.Module):
    """The published detector, written plainly: features, L2 or not, one linear layer."""

    def __init__(
        self, extractor: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], dim: int
    ) -> None:
        super().__init__()
        self.feature_extractor = extractor
        self.model = nn.Module()
        self.model.linear = nn.Linear(dim, 2)
        self.features = features
        self.normalize = True

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = self.features(self.feature_extractor, images)
        features = F.normalize(features, p=2, dim=1) if self.normalize else features
        return self.model.linear(features)


def clip_reference(**sizes: int) -> Reference:
    """Transformers' CLIP tower as the authors hold it, with its unused projection to text."""
    config = CLIPVisionConfig(
        **{
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": SIDE,
            "patch_size": PATCH,
            **sizes,
        }
    )
    extractor = nn.Module()
    extractor.vision_model = CLIPVisionModel(config)
    extractor.visual_projection = nn.Linear(config.hidden_size, 16, bias=False)
    reference = Reference(extractor, lambda own, x: own.vision_model(x).pooler_output, config.hidden_size)
    return shaken(reference)  # type: ignore[return-value]


def perception_reference(name: str) -> Reference:
    """timm's Perception Encoder as the authors make it: its positions resampled at every forward."""
    extractor = nn.Module()
    extractor.backbone = timm.create_model(name, pretrained=False, dynamic_img_size=True)
    extractor.backbone.head = nn.Identity()
    width = extractor.backbone.num_features
    return shaken(Reference(extractor, lambda own, x: own.backbone(x), width))  # type: ignore[return-value]


def dinov3_reference(**sizes: int) -> Reference:
    """Transformers' DINOv3, of the smallest size that timm has, with its class token as the feature."""
    small = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    config = DINOv3ViTConfig(**{**small, "num_register_tokens": 4, **sizes})
    extractor = nn.Module()
    extractor.backbone = DINOv3ViTModel(config)
    return shaken(
        Reference(extractor, lambda own, x: own.backbone(x).last_hidden_state[:, 0], config.hidden_size)
    )  # type: ignore[return-value]


def shapes_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A safetensors file of these names and shapes, all zeros, that takes no room on the disk."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        stop = start + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return path


def gend_folder(path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as GenD's repositories have it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "GenD", **config}))
    return path


def in_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of DD's checkpoint: each norm of the extractor twice, the old copy all 7."""
    wrapped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix("feature_extractor.")
        if inner == name:
            wrapped[name] = tensor
            continue
        prefix = "feature_extractor.base_model.model."
        match = re.fullmatch(r"(.*norm\w*)\.(weight|bias)", inner)
        if match:
            wrapped[f"{prefix}{match[1]}.base_layer.{match[2]}"] = torch.full_like(tensor, 7.0)
            wrapped[f"{prefix}{match[1]}.ln_tuning_layers.default.{match[2]}"] = tensor
        else:
            wrapped[prefix + inner] = tensor
    return wrapped


def lightning_file(path: Path, tensors: dict[str, Tensor], **hyper_parameters: Any) -> Path:
    """A checkpoint with what Lightning puts into one."""
    torch.save(
        {
            "epoch": 3,
            "global_step": 12,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": tensors,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
            "lr_schedulers": [],
            "hparams_name": "config",
            "hyper_parameters": hyper_parameters,
        },
        path,
    )
    return path
