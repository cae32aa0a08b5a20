"""A published tower under our names."""

from __future__ import annotations

from dataclasses import dataclass

from dfdet.model.weights import Tensors


@dataclass(frozen=True)
class Mapped:
    """What a family's module makes of a tower."""

    backbone: str
    """Our name of it."""
    image_size: int
    """Side of its input (pixels)."""
    tensors: Tensors
    """Under the names of our tower's state dict."""
    unused: tuple[str, ...] = ()
    """Names, inside the feature extractor, that no feature depends on."""
    notes: tuple[str, ...] = ()
    """What had to be assumed."""
    pool: str | None = None
    """Pooling that differs from the backbone's own default (timm's name)."""
    interpolation: str | None = None
    """Resampling of the input that differs from the backbone's own."""
