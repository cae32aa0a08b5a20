"""Weights of towers: no detectors, but where training of one starts."""

from __future__ import annotations

from dfdet.model.weights import is_hugging_face
from dfdet.published.contents import is_detector
from dfdet.published.raw import Raw

USE = "train a detector from it with --model.pretrained FILE and the --model.backbone that it is of"

_KINDS = {
    "visual.conv1.weight": "OpenAI or open_clip weights",
    "conv1.weight": "OpenAI or open_clip weights of a vision tower",
    "visual.trunk.patch_embed.proj.weight": "open_clip weights on a timm tower",
    "patch_embed.proj.weight": "timm weights",
}


def kind(raw: Raw) -> str | None:
    """What kind of tower weights these are; None for a detector, and for names that are not known."""
    if is_detector(raw):
        return None
    if is_hugging_face(raw.tensors):
        return "Hugging Face CLIP weights"
    if any(name.endswith("embeddings.patch_embeddings.weight") for name in raw.tensors):
        return "Hugging Face ViT weights"
    return next((words for name, words in _KINDS.items() if name in raw.tensors), None)
