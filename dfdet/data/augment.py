"""GenD's training augmentation (arXiv 2508.06248) on one uint8 crop, with numbers from hashes.

Order: flip, affine, blur, jitter, JPEG; or JPEG first, which is not the published order but lets the
rest run on the device (:mod:`dfdet.data.device_augment`). Distributions and edges are those of the
torchvision transforms that GenD composes: nearest neighbour and black edges in the affine,
whole-pixel shifts, brightness and contrast in random order. On a CPU, cv2 and simplejpeg take a third
of Pillow's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dfdet.data.decode import Pixels
from dfdet.data.hashing import chain, uniforms

if TYPE_CHECKING:
    from dfdet.config import Augment

_STREAM = 0x617567  # keeps these draws apart from all other uses of the seed
_DRAWS = 11
BLUR_KERNEL_PX = 7
_BLUR_SIGMA_PX = (0.1, 2.0)


@dataclass(frozen=True)
class Parameters:
    """What is done to one crop."""

    flip: bool
    degrees: float
    shift_x: float
    """Of the side (fraction)."""
    shift_y: float
    scale: float
    sigma_px: float
    """Blur; 0 for none."""
    brightness: float
    contrast: float
    contrast_first: bool
    quality: int | None
    """JPEG quality; None for no JPEG."""


def draw_parameters(
    augment: Augment, seed: int, epoch: int, positions: Sequence[int] | NDArray[Any]
) -> list[Parameters]:
    """Draws the augmentation of samples from their position in the epoch, whoever computes it.

    Args:
        augment: Ranges and probabilities; a strength of 0 must be handled by not augmenting.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        positions: batch * B + column in the global batch, of each sample.
    """
    draws = uniforms(chain(seed, _STREAM, epoch, positions), _DRAWS)
    return [_parameters(augment, row) for row in draws]


def apply(image: Pixels, parameters: Parameters, *, jpeg_first: bool = False) -> Pixels:
    """Augments a square crop [s, s, 3] uint8 RGB; the result has the same shape."""
    if jpeg_first:
        return _move_blur_jitter(recompress(image, parameters), parameters)
    return recompress(_move_blur_jitter(image, parameters), parameters)


def recompress(image: Pixels, parameters: Parameters) -> Pixels:
    """The JPEG step alone."""
    return image if parameters.quality is None else jpeg(image, parameters.quality)


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Compressed (4:2:0) and decompressed as Pillow does it, to the bit."""
    # simplejpeg's encoder always takes the fast DCT below quality 96: up to 27 levels from Pillow's and
    # torchvision's. cv2's equals theirs to the bit, in the same time.
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality)
    )
    return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)


def affine_matrix(parameters: Parameters, side: int) -> NDArray[np.float64]:
    """From places (x, y, 1) of a crop to where they go, [2, 3], about its middle (pixels)."""
    p, middle = parameters, (side - 1) / 2
    matrix: Any = cv2.getRotationMatrix2D((middle, middle), p.degrees, p.scale)
    matrix[:, 2] += round(p.shift_x * side), round(p.shift_y * side)
    return matrix


def _move_blur_jitter(image: Pixels, p: Parameters) -> Pixels:
    if p.flip:
        image = cv2.flip(image, 1)
    image = _affine(image, p)
    if p.sigma_px > 0:
        kernel = (BLUR_KERNEL_PX, BLUR_KERNEL_PX)
        image = cv2.GaussianBlur(image, kernel, p.sigma_px, borderType=cv2.BORDER_REFLECT_101)
    return _jitter(image, p)


def _parameters(augment: Augment, draw: NDArray[np.float64]) -> Parameters:
    strength, signed = augment.strength, draw * 2 - 1
    low_sigma, high_sigma = _BLUR_SIGMA_PX
    blurred = draw[5] < augment.blur * strength
    return Parameters(
        flip=bool(draw[0] < augment.flip),
        degrees=float(signed[1] * augment.rotate_degrees * strength),
        shift_x=float(signed[2] * augment.translate * strength),
        shift_y=float(signed[3] * augment.translate * strength),
        scale=float(1 + signed[4] * augment.scale * strength),
        sigma_px=float(low_sigma + draw[6] * (high_sigma - low_sigma)) if blurred else 0.0,
        brightness=max(0.0, float(1 + signed[7] * augment.brightness * strength)),
        contrast=max(0.0, float(1 + signed[8] * augment.contrast * strength)),
        contrast_first=bool(draw[9] < 0.5),
        quality=_quality(augment, float(draw[10])),
    )


def _quality(augment: Augment, draw: float) -> int | None:
    """Uniform over lowest..100; strength 2 doubles the distance of the lowest from 100."""
    lowest = max(1, round(100 - augment.strength * (100 - augment.jpeg_quality)))
    return None if lowest == 100 else lowest + int(draw * (101 - lowest))


def _affine(image: Pixels, p: Parameters) -> Pixels:
    side = image.shape[0]
    matrix = affine_matrix(p, side)
    if np.array_equal(matrix, np.eye(2, 3)):
        return image
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_NEAREST, borderValue=(0, 0, 0))


def _jitter(image: Pixels, p: Parameters) -> Pixels:
    steps = [_brightness, _contrast] if not p.contrast_first else [_contrast, _brightness]
    for step in steps:
        image = step(image, p)
    return image


def _brightness(image: Pixels, p: Parameters) -> Pixels:
    """Multiplies all values (torchvision's ``adjust_brightness``)."""
    return image if p.brightness == 1 else _scaled(image, p.brightness, 0.0)


def _contrast(image: Pixels, p: Parameters) -> Pixels:
    """Moves all values from or to the mean grey (torchvision's ``adjust_contrast``)."""
    if p.contrast == 1:
        return image
    grey = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _scaled(image, p.contrast, (1 - p.contrast) * grey)


def _scaled(image: Pixels, factor: float, offset: float) -> Pixels:
    """Rounded and clamped ``image * factor + offset``; half the time of a table of values."""
    return cv2.addWeighted(image, factor, image, 0, offset)
