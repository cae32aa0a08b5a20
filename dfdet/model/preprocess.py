"""What a tower's input looks like."""

from __future__ import annotations

from dataclasses import dataclass

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """How uint8 images become a tower's input; channels in RGB order, pixels scaled to 0..1 first."""

    image_size: int
    """Side of the input (pixels)."""
    mean: Channels
    """Subtracted from each channel."""
    std: Channels
    """Each channel is divided by it after."""
    interpolation: str
    """Resampling of the resize, as ``bicubic``."""
