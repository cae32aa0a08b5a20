"""One training step, ours and as others write it, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.config import Config, Model, Tuning
from dfdet.model.detector import Detector, Precision
from dfdet.model.heads import LinearHead
from dfdet.model.openclip import OpenClipTower, stock_visual
from dfdet.model.tuning import apply_tuning
from dfdet.training.losses import DetectionLoss
from dfdet.training.optimizer import GuardedAdamW

LEARNING_RATE = 1e-4
HUGGING_FACE_NAMES = (
    ("transformer.resblocks.", "encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("conv1.", "embeddings.patch_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("class_embedding", "embeddings.class_embedding"),
)

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """A tower with its head, loss and optimizer."""

    name: str
    precision: Precision
    tower: nn.Module
    forward: Forward
    """Images to features, under the autocast of its own."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of features and labels."""
    optimizer: torch.optim.Optimizer

    @property
    def norms(self) -> list[nn.Parameter]:
        """The tower's trainable parameters from the input on."""
        return [parameter for parameter in self.tower.parameters() if parameter.requires_grad]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step."""
        self.loss(self.forward(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def ours(detector: Detector, config: Config) -> Rival:
    """The detector with its loss and optimizer."""
    loss = DetectionLoss(config.loss)
    optimizer = GuardedAdamW(detector.trainable().values(), partitioned=False, lr=LEARNING_RATE)

    def total(features: Tensor, labels: Tensor) -> Tensor:
        valid = torch.ones_like(labels, dtype=torch.bool)
        return loss(features, labels, valid, detector.head, (0, 0, 0)).total

    return Rival("dfdet", detector.precision, detector.tower, detector, total, optimizer)


def weights_of(tower: OpenClipTower) -> dict[str, Tensor]:
    """The tower's tensors by open_clip's names; their storages outlive a later change of precision."""
    return {name: tensor.detach() for name, tensor in tower.visual.state_dict().items()}


def stock_tower(config: Model, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """open_clip's own tower with its default block; norms train."""
    with torch.device("meta"):
        visual = stock_visual(config)
    return _prepared(visual, weights, device)


def hugging_face_tower(stock: Any, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """transformers' CLIP vision tower of the stock one's sizes; norms train.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    block = stock.transformer.resblocks[0]
    sizes = CLIPVisionConfig(
        hidden_size=stock.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(stock.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=stock.image_size[0],
        patch_size=stock.patch_size[0],
        hidden_act="gelu" if isinstance(block.mlp.gelu, nn.GELU) else "quick_gelu",
        layer_norm_eps=block.ln_1.eps,
    )
    with torch.device("meta"):
        model = CLIPVisionModel(sizes)
    positions = torch.arange(len(weights["positional_embedding"]))[None]
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    return _prepared(model, dict(_hugging_face(weights)), device)


def pooled(model: nn.Module) -> Forward:
    """transformers' features: its pooler output."""

    def forward(images: Tensor) -> Tensor:
        return model(images).pooler_output

    return forward


def _hugging_face(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        for ours, theirs in HUGGING_FACE_NAMES:
            name = name.replace(ours, theirs)
        if "in_proj_" in name:
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace("in_proj_", f"{which}_proj."), part
        else:
            yield name, tensor


def _prepared(tower: nn.Module, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The tower with weights that it shares with others, but for its norms, which train."""
    tower.load_state_dict(weights, assign=True)
    apply_tuning(tower, Tuning(mode="ln"))
    for parameter in tower.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    return tower.to(device).eval()


def public_step(
    name: str, precision: Precision, tower: nn.Module, features: Forward, dim: int, device: torch.device
) -> Rival:
    """A tower under autocast, a linear head on unit features and AdamW, as public code writes them."""
    head = LinearHead(dim, normalize=True).to(device)
    trained = [*(p for p in tower.parameters() if p.requires_grad), *head.parameters()]

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return features(images).float()

    def loss(points: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(points), labels)

    return Rival(name, precision, tower, forward, loss, torch.optim.AdamW(trained, lr=LEARNING_RATE))
