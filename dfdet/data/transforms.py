"""From uint8 crops to the model's input, batched on the device where the images lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.data.buffers import BufferPool

CPU_CHUNK = 4
"""Images in work at a time on a CPU: intermediates stay in the cache (images)."""


class ToInput(nn.Module):
    """Resizes each crop from its own size (antialiased) and normalises.

    The reference is the public preprocessing, Pillow's resize of a uint8 image, then ``/ 255 - mean``
    and ``/ std``. Against that, values differ by at most 2 of 255 levels, less than .01 in the mean (the
    precision of the weights); crops that already have the model's size are equal to the bit, and so
    are all with ``data.resize=pillow``.

    Args:
        image_size: Side H of the model's input (pixels).
        mean: Mean of each channel, of values in 0 to 1.
        std: Standard deviation of each channel.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    levels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, image_size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
    ) -> None:
        super().__init__()
        self.image_size, self.interpolation = image_size, interpolation
        # A tensor: CUDA multiplies by the reciprocal of a plain number, which is not the same.
        self.register_buffer("levels", torch.tensor(255.0), persistent=False)
        # Of a whole row of an image: [H * 3].
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).repeat(image_size), False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).repeat(image_size), False)
        self._lent = BufferPool("float32")

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Transforms a batch.

        Args:
            images: [b, S, S, 3] uint8 RGB; a crop lies in the top left of its buffer.
            sizes: [b] sides of the crops (pixels), best on the CPU: elsewhere reading them waits for
                the device. None: all S.

        Returns:
            [b, 3, H, H] float32 on the images' device, in channels-last memory.
        """
        sides = [images.shape[1]] * len(images) if sizes is None else sizes.tolist()
        filled = self._on_cpu if images.device.type == "cpu" else self._on_accelerator
        return filled(images, sides).permute(0, 3, 1, 2)

    def _on_cpu(self, images: Tensor, sides: list[int]) -> Tensor:
        """[b, H, H, 3]; resizes in uint8, the fastest here and the closest to Pillow."""
        # Fresh memory would cost four times the normalisation.
        h = self.image_size
        out = self._lent.take((len(images), h, h, 3))
        for rows, side in _runs(sides):
            self._normalise(out[rows].copy_(self._resized(images[rows, :side, :side], h, h)))
        return out

    def _on_accelerator(self, images: Tensor, sides: list[int]) -> Tensor:
        """[b, H, H, 3]; resizes in float32, there is no uint8 kernel, with Pillow's rounding in between."""
        h = self.image_size
        out = torch.empty((len(images), h, h, 3), dtype=torch.float32, device=images.device)
        for rows, side in _groups(sides, images.device):
            across = _rounded(self._resized(images[rows, :side, :side].float(), side, h))
            out[rows] = _rounded(self._resized(across, h, h))
        self._normalise(out)
        return out

    def _resized(self, images: Tensor, height: int, width: int) -> Tensor:
        """[n, s, s, 3] as [n, height, width, 3] of the same type."""
        if images.shape[1:3] == (height, width):
            return images
        planes = images.permute(0, 3, 1, 2)
        planes = F.interpolate(planes, (height, width), mode=self.interpolation, antialias=True)
        return planes.permute(0, 2, 3, 1)

    def _normalise(self, images: Tensor) -> None:
        """Scales [n, H, H, 3] float32 with values 0 to 255 in place, in the reference's operations."""
        images.flatten(2).div_(self.levels).sub_(self.mean).div_(self.std)


def _rounded(values: Tensor) -> Tensor:
    """Whole values of 0 to 255, halves upwards as Pillow has it, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _runs(sides: list[int]) -> Iterator[tuple[slice, int]]:
    """Neighbours of equal side, at most a chunk of them, and the side."""
    start = 0
    for side, run in groupby(sides):
        stop = start + len(list(run))
        for low in range(start, stop, CPU_CHUNK):
            yield slice(low, min(low + CPU_CHUNK, stop)), side
        start = stop


def _groups(sides: list[int], device: torch.device) -> Iterator[tuple[slice | Tensor, int]]:
    """All rows of each side, and the side."""
    for side in sorted(set(sides)):
        rows = [row for row, other in enumerate(sides) if other == side]
        yield slice(None) if len(rows) == len(sides) else torch.tensor(rows, device=device), side
