"""Perception Encoders (arXiv 2504.13181), published under timm's own names."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dfdet.errors import WeightsError
from dfdet.model.weights import Tensors
from dfdet.published.contents import Contents
from dfdet.published.pickles import plain
from dfdet.published.towers.mapped import Mapped

PREFIX = "backbone."
OURS = "trunk."
FAMILY = "vit_pe_core"
POSITIONS = "pos_embed"
IMAGE_SIZE = 224
"""Side of GenD's input, whatever the tower was pretrained at (pixels)."""


def recognises(tower: Tensors) -> bool:
    """Whether the names are those of timm's Perception Encoders."""
    return f"{PREFIX}attn_pool.latent" in tower or f"{PREFIX}{POSITIONS}" in tower


def mapped(contents: Contents, source: str) -> Mapped:
    """The tower under our names.

    GenD lets timm resample the position embedding at every forward; here that is done once, with timm's
    own function: Hugging Face's would shift the features.

    Raises:
        WeightsError: No Perception Encoder of timm has its name or sizes.
    """
    tower = {k.removeprefix(PREFIX): v for k, v in contents.tower.items()}
    name, notes = _backbone(contents.backbone, tower, source)
    size = _image_size(contents)
    if POSITIONS in tower and "patch_embed.proj.weight" in tower:
        tower[POSITIONS] = _resampled(tower[POSITIONS], size // tower["patch_embed.proj.weight"].shape[-1])
    return Mapped(f"timm/{name}", size, {OURS + k: v for k, v in tower.items()}, notes=notes)


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Positions ``[1, 1 + n * n, D]`` with a class token, for a grid of ``side``."""
    if positions.ndim != 3 or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        return positions  # of another shape, which is said where shapes are compared
    return resample_abs_pos_embed(positions.float(), [side, side], num_prefix_tokens=1)


def _image_size(contents: Contents) -> int:
    arguments = plain(contents.values.get("backbone_args"))
    size: Any = arguments.get("img_size") if isinstance(arguments, dict) else None
    return size if isinstance(size, int) else IMAGE_SIZE


def _backbone(published: str | None, tower: Tensors, source: str) -> tuple[str, tuple[str, ...]]:
    known: list[str] = timm.list_models(f"{FAMILY}*")
    name = (published or "").split(".")[0]
    if name in known:
        return name, ()
    fitting = [other for other in known if _fits(other, tower)]
    if not fitting:
        raise WeightsError(
            f"{source}: no Perception Encoder of timm has its name {published!r} or its sizes;"
            f" known are {', '.join(known)}"
        )
    return fitting[0], (
        f"its backbone is not known by name ({published!r}): by its sizes it is {fitting[0]}",
    )


def _fits(name: str, tower: Tensors) -> bool:
    with torch.device("meta"):
        expected = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    return all(k in tower and v.shape == tower[k].shape for k, v in expected.items() if k != POSITIONS)
