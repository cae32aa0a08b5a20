"""From uint8 crops to the model's input, batched on the device where the images lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CPU_CHUNK = 4
"""Images normalised at a time: intermediates stay in the cache, half the time of a batch (images)."""


class ToInput(nn.Module):
    """Resizes each crop from its own size (bicubic, antialiased) and normalises.

    The reference is the public preprocessing: Pillow's bicubic resize of a uint8 image. Against
    that, values differ by at most 2 of 255 levels (rounding between the two passes of the resize).

    Args:
        image_size: Side H of the model's input (pixels).
        mean: Mean of each channel, of values in 0 to 1.
        std: Standard deviation of each channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.image_size = image_size
        deviation = torch.tensor(std, dtype=torch.float64)
        average = torch.tensor(mean, dtype=torch.float64)
        # One multiplication and one addition instead of /255, -mean, /std.
        self.register_buffer("scale", (1 / (255 * deviation)).float(), persistent=False)
        self.register_buffer("shift", (-average / deviation).float(), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Transforms a batch.

        Args:
            images: [b, S, S, 3] uint8 RGB; a crop lies in the top left of its buffer.
            sizes: [b] sides of the crops (pixels), best on the CPU: elsewhere reading them waits for
                the device. None: all S.

        Returns:
            [b, 3, H, H] float32 on the images' device, in channels-last memory.
        """
        groups = _by_size(sizes, images.shape[1])
        if len(groups) == 1:
            side = next(iter(groups))
            return self._normalised(self._resized(images[:, :side, :side]))
        out = images.new_empty((len(images), 3, self.image_size, self.image_size)).float()
        out = out.to(memory_format=torch.channels_last)
        for side, rows in groups.items():
            chosen = torch.tensor(rows, device=images.device)
            out[chosen] = self._normalised(self._resized(images[chosen, :side, :side]))
        return out

    def _resized(self, images: Tensor) -> Tensor:
        """[b, s, s, 3] uint8 as [b, 3, H, H] with whole values, uint8 or float32."""
        planes = images.permute(0, 3, 1, 2)
        if planes.shape[-1] == self.image_size:
            return planes
        # uint8 bicubic exists on the CPU only, where it is also the fastest and closest to Pillow.
        if planes.device.type != "cpu":
            planes = planes.float()
        size = (self.image_size, self.image_size)
        resized = F.interpolate(planes, size, mode="bicubic", antialias=True)
        return resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255)

    def _normalised(self, planes: Tensor) -> Tensor:
        """[b, 3, H, H] with values 0 to 255 as normalised float32, in channels-last memory."""
        rows = planes.permute(0, 2, 3, 1).flatten(2)
        scale, shift = (channel.repeat(planes.shape[-1]) for channel in (self.scale, self.shift))
        out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        step = CPU_CHUNK if rows.device.type == "cpu" else max(1, len(rows))
        for part, source in zip(out.split(step), rows.split(step), strict=True):
            torch.addcmul(shift, source.float(), scale, out=part)
        return out.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


def _by_size(sizes: Tensor | None, side: int) -> dict[int, list[int]]:
    """Rows by size of crop."""
    if sizes is None:
        return {side: []}
    groups: dict[int, list[int]] = {}
    for row, size in enumerate(sizes.tolist()):
        groups.setdefault(size, []).append(row)
    return groups
