"""Preprocessing as tensor operations alone, for graphs: uint8 crops to the tower's input, equal to the bit.

An antialiased resize of uint8 images is integer arithmetic: weights of the filter rounded to whole
numbers, sums, and a rounding to 0..255 after each axis. Runtimes disagree about it (torch has no uint8
kernel on CUDA, ONNX Runtime's ``Resize`` is another one on each provider, TensorRT's cannot antialias), so
it is written here as two matrix products an axis whose every number is a whole one below 2**24: exact in
float32, whatever the order of the sums, and in TF32, as the factors have 11 bits at most (but Pillow's
weights at the edge of a crop that is enlarged).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfdet.errors import ConfigError
from dfdet.model.preprocess import Preprocess

REACH = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of each filter (pixels of the coarser grid)."""
LOW_BITS = 11
"""Weights are split into whole numbers of at most 11 bits, what TF32 holds; sums stay exact for crops of
up to 8 times the input's side."""
PILLOW_BITS = 22
"""Binary digits of Pillow's weights."""


class ExactResize(nn.Module):
    """Crops ``[N, H, W, 3]`` uint8 to normalised input ``[N, 3, S, S]`` float32.

    Equal to :class:`dfdet.data.transforms.ToInput` on a CPU, whose weights are torch's of 16 bits, or
    to Pillow's resize with its 22 bits. A crop that is not square is squeezed into one.

    Args:
        preprocess: Side S, filter, mean and deviation.
        pillow: Pillow's weights instead of torch's.

    Raises:
        ConfigError: A filter other than bicubic and bilinear.
    """

    steps: Tensor
    levels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, *, pillow: bool = False) -> None:
        super().__init__()
        if preprocess.interpolation not in REACH:
            raise ConfigError(
                f"the backbone's resize {preprocess.interpolation!r} has no graph, only"
                f" {' and '.join(REACH)}; export a detector of another backbone"
            )
        self.side, self.interpolation, self.pillow = preprocess.image_size, preprocess.interpolation, pillow
        self.register_buffer("steps", 2.0 ** torch.arange(PILLOW_BITS, dtype=torch.float64), False)
        # A tensor: CUDA multiplies by the reciprocal of a plain number, which is not the same.
        self.register_buffer("levels", torch.tensor(255.0), persistent=False)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """``[N, H, W, 3]`` uint8 to ``[N, 3, S, S]`` float32."""
        planes = crops.permute(0, 3, 1, 2).float()
        squeezed = self._last_axis(planes).mT  # across first, as Pillow and torch have it
        return self._last_axis(squeezed).mT.div(self.levels).sub(self.mean).div(self.std)

    def _last_axis(self, planes: Tensor) -> Tensor:
        """``[..., P]`` whole levels to ``[..., S]``."""
        high, low, unit = self._weights(planes)
        both = planes @ torch.cat([high, low]).mT
        carried = (both[..., self.side :] * 2.0**-LOW_BITS).floor()  # what is cut off changes no result
        sums = both[..., : self.side] + carried
        return ((sums + unit / 2) / unit).floor().clamp(0, 255)

    def _weights(self, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Upper and lower part of the weights ``[S, P]``, whole, and the value of 1 in the upper one."""
        weights = self._filter(planes)
        whole = self._precision(weights)
        scaled = weights * whole
        rounded = scaled.sign() * (scaled.abs() + 0.5).floor()
        high = (rounded * 2.0**-LOW_BITS).floor()
        return high.float(), (rounded - high * 2.0**LOW_BITS).float(), (whole * 2.0**-LOW_BITS).float()

    def _filter(self, planes: Tensor) -> Tensor:
        """Weights of P pixels in each of S ``[S, P]`` float64, each row's sum 1.

        Tensors where plain numbers would do: the exporter would take P's relation to S for granted.
        """
        pixels = planes.shape[-1]
        double: dict[str, Any] = {"dtype": torch.float64, "device": planes.device}
        scale = torch.full((), pixels, **double) / self.side
        stretch = scale.clamp_min(1)
        centre = scale * (torch.arange(self.side, **double) + 0.5)[:, None]
        first = (centre - REACH[self.interpolation] * stretch + 0.5).floor()
        after = (centre + REACH[self.interpolation] * stretch + 0.5).floor()
        pixel = torch.arange(pixels, **double)
        weights = self._kernel((pixel - centre + 0.5).abs() * (1 / stretch))
        weights = torch.where((pixel >= first) & (pixel < after), weights, 0.0)
        return weights / weights.sum(dim=1, keepdim=True)

    def _kernel(self, distance: Tensor) -> Tensor:
        """The filter at distances from its middle."""
        if self.interpolation == "bilinear":
            return (1 - distance).clamp_min(0)
        near = (1.5 * distance - 2.5) * distance.square() + 1  # Keys' cubic with a = -1/2
        far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
        return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))

    def _precision(self, weights: Tensor) -> Tensor:
        """The whole number that stands for 1: as large as lets torch's largest weight fit 16 bits."""
        if self.pillow:
            return self.steps[-1] * 2
        fits = weights.max() * self.steps * 2 < 2**15 - 0.5
        return 1 + torch.where(fits, self.steps, 0.0).sum()
