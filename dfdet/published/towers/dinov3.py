"""DINOv3 ViTs (arXiv 2508.10104) of Hugging Face's transformers, as timm's."""

from __future__ import annotations

import re

import torch

from dfdet.errors import WeightsError
from dfdet.model.weights import Tensors
from dfdet.published.contents import Contents
from dfdet.published.towers.mapped import Mapped

PREFIX = "backbone."
OURS = "trunk."
BACKBONES = {192: "vit_tiny", 384: "vit_small", 768: "vit_base", 1024: "vit_large"}
"""timm's names by width, the smallest EUPE's; larger ones have gated MLPs and no detector of them is out."""
IMAGE_SIZE = 224
"""Side of the input in Hugging Face's preprocessing of DINOv3 (pixels)."""
UNUSED = ("embeddings.mask_token",)

_BLOCK = r"^(?:model\.)?layer\.(\d+)\."  # transformers 5 moved the layers into `model`
_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (_BLOCK + r"norm([12])\.", r"blocks.\1.norm\2."),
    (_BLOCK + r"attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (_BLOCK + r"attention\.([qv])_proj\.bias$", r"blocks.\1.attn.\2_bias"),
    (_BLOCK + r"layer_scale([12])\.lambda1$", r"blocks.\1.gamma_\2"),
    (_BLOCK + r"mlp\.up_proj\.", r"blocks.\1.mlp.fc1."),
    (_BLOCK + r"mlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
)
_QUERY = re.compile(_BLOCK + r"attention\.q_proj\.weight$")
_KEY_VALUE = re.compile(_BLOCK + r"attention\.[kv]_proj\.weight$")


def recognises(tower: Tensors) -> bool:
    """Whether the names are those of Hugging Face's DINOv3 (DINOv2 has position embeddings)."""
    return f"{PREFIX}embeddings.register_tokens" in tower and not any("position" in name for name in tower)


def mapped(contents: Contents, source: str) -> Mapped:
    """The tower under timm's names; the feature is the class token, the input is resized bilinearly.

    Raises:
        WeightsError: A width that none of the known towers has.
    """
    tower = {k.removeprefix(PREFIX): v for k, v in contents.tower.items()}
    width = tower["embeddings.register_tokens"].shape[-1]
    if width not in BACKBONES:
        raise WeightsError(
            f"{source}: no DINOv3 tower of width {width} is known; known are {', '.join(BACKBONES.values())}"
            f" ({', '.join(map(str, BACKBONES))})"
        )
    tensors = _timm_names({k: v for k, v in tower.items() if k not in UNUSED})
    return Mapped(
        f"timm/{BACKBONES[width]}_patch16_dinov3_qkvb",
        IMAGE_SIZE,
        {OURS + k: v for k, v in tensors.items()},
        unused=tuple(PREFIX + k for k in UNUSED if k in tower),
        pool="token",
        interpolation="bilinear",
    )


def _timm_names(tower: Tensors) -> Tensors:
    """timm's names; q, k, v are joined in that order (k has no bias)."""
    renamed = {_renamed(k): v for k, v in tower.items() if not _QUERY.match(k) and not _KEY_VALUE.match(k)}
    for name in tower:
        match = _QUERY.match(name)
        if match:
            parts = [tower.get(name.replace("q_proj", f"{which}_proj")) for which in "qkv"]
            if all(part is not None for part in parts):
                joined = torch.cat([part for part in parts if part is not None])
                renamed[f"blocks.{match[1]}.attn.qkv.weight"] = joined
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name
