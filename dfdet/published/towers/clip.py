"""CLIP vision towers of Hugging Face's CLIP, as open_clip's."""

from __future__ import annotations

import math
from typing import Any

import open_clip

from dfdet.errors import WeightsError
from dfdet.model.weights import Tensors, from_hugging_face
from dfdet.published.contents import Contents
from dfdet.published.towers.mapped import Mapped

NAMES = {
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
    "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
}
"""OpenAI's towers, all of QuickGELU."""
PREFIX = "vision_model."
OURS = "visual."
VISION = tuple(PREFIX + part for part in ("embeddings.", "pre_layrnorm.", "post_layernorm.", "encoder."))
UNUSED = ("visual_projection.", "text_model.", "text_projection.", "logit_scale")
POSITION_IDS = "embeddings.position_ids"


def recognises(tower: Tensors) -> bool:
    """Whether the names are those of Hugging Face's CLIP."""
    return any(name.startswith(PREFIX) for name in tower)


def mapped(contents: Contents, source: str) -> Mapped:
    """The tower under open_clip's names; the projection to the text space is left out.

    Raises:
        WeightsError: Embeddings are missing, or no tower of open_clip has its sizes.
    """
    tower = contents.tower
    unused = tuple(k for k in tower if k.startswith(UNUSED) or k.endswith(POSITION_IDS))
    surplus = {k: v for k, v in tower.items() if k not in unused and not k.startswith(VISION)}
    tensors = from_hugging_face({k: v for k, v in tower.items() if k.startswith(VISION)}) | surplus
    sizes = _sizes(tower, source)
    name, notes = _backbone(contents.backbone, sizes, source)
    return Mapped(name, sizes["image_size"], {OURS + k: v for k, v in tensors.items()}, unused, notes)


def _sizes(tower: Tensors, source: str) -> dict[str, int]:
    """Width, layers, patch and image size, as open_clip's configuration has them."""
    patches = tower.get(f"{PREFIX}embeddings.patch_embedding.weight")
    positions = tower.get(f"{PREFIX}embeddings.position_embedding.weight")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 2:
        raise WeightsError(f"{source}: patch or position embeddings of {PREFIX}* are missing; get it again")
    layers = {k.split(".")[3] for k in tower if k.startswith(f"{PREFIX}encoder.layers.")}
    width, patch = patches.shape[0], patches.shape[-1]
    side = math.isqrt(positions.shape[0] - 1) * patch
    return {"width": width, "layers": len(layers), "patch_size": patch, "image_size": side}


def _backbone(published: str | None, sizes: dict[str, int], source: str) -> tuple[str, tuple[str, ...]]:
    if published in NAMES:
        return NAMES[published], ()
    if published and open_clip.get_model_config(published):
        return published, ()
    fitting = [name for name in open_clip.list_models() if _fits(open_clip.get_model_config(name), sizes)]
    if not fitting:
        raise WeightsError(
            f"{source}: no CLIP tower of open_clip with QuickGELU has its sizes ({_shown(sizes)});"
            f" known by name are {', '.join(NAMES)}"
        )
    name = min(fitting, key=lambda name: (len(name), name))
    told = f"its backbone {published!r} is not known" if published else "its backbone is not told"
    return name, (f"{told}: taken from its sizes ({_shown(sizes)}) as {name}, with QuickGELU",)


def _fits(config: dict[str, Any], sizes: dict[str, int]) -> bool:
    vision = config["vision_cfg"]
    return bool(config.get("quick_gelu")) and all(vision.get(key) == size for key, size in sizes.items())


def _shown(sizes: dict[str, int]) -> str:
    return ", ".join(f"{key} {size}" for key, size in sizes.items())
