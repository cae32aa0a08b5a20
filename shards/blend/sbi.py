"""A self-blended image: a face blended with its own altered copy (SBI, arXiv 2204.08376).

Parameters are drawn for each frame anew, as the authors do: frames are independent in training.
Lengths that they give for pictures of 224 px are taken relative to the face.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.blend.draws import Draws
from shards.blend.mismatch import augment
from shards.blend.pixels import Array, to_bytes, to_float
from shards.blend.regions import Box, Points, face_length, fill, outline

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""Blending ratios, each as likely."""
FACE_PX = 60
"""Eyes to mouth in the pictures that the authors' lengths are for (pixels)."""


class Blended(NamedTuple):
    """A fake and how much of it is the source."""

    image: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    alpha: NDArray[np.float32]
    """Blending mask times ratio, 0 to 1, [H, W]; where it is 0 the fake is the target."""


def self_blend(
    real: NDArray[np.uint8],
    points: Points,
    box: Box | None,
    draws: Draws,
    *,
    seen: NDArray[np.bool_] | None = None,
    augment_target: bool = False,
) -> Blended:
    """Blends a face with itself: ``alpha * source + (1 - alpha) * target``.

    The source is the image with other colour, sharpness and compression, moved and bent a little.
    The mask is a region of the face, moved alike, bent more, shrunk and blurred.

    Args:
        real: RGB [H, W, 3].
        points: 5, 68 or 81 landmarks, [N, 2] (pixels).
        box: Face box x0, y0, x1, y1 (pixels).
        draws: The numbers of this fake.
        seen: Where the image shows the frame and not the black around it, [H, W]; nothing is blended
            elsewhere. None: everywhere.
        augment_target: In half of the fakes alter the target instead of the source.

    Raises:
        ValueError: The landmarks outline no region in the image.
    """
    height, width = real.shape[:2]
    unit = face_length(points) / FACE_PX
    region = fill(outline(points, box, draws), height, width)
    target = to_float(real)
    source = augment(target, draws)
    if augment_target and draws.chance("target", 0.5):
        source, target = target, source
    moved = _moved(height, width, points.mean(0), unit, draws)
    source = _sampled(source, moved + _bend(draws, "face", (height, width), 0.5 * unit), cv2.INTER_CUBIC)
    region = _sampled(region, moved + _bend(draws, "mask", (height, width), 3.0 * unit), cv2.INTER_LINEAR)
    alpha = _softened(region, unit, draws) * np.float32(draws.choice("ratio", RATIOS))
    if seen is not None:
        alpha *= seen
    if alpha.max() < min(RATIOS) / 2:
        raise ValueError("landmarks outline no region in the image")
    return Blended(to_bytes(target + alpha[..., None] * (source - target)), alpha)


def _moved(height: int, width: int, centre: Points, unit: float, draws: Draws) -> Array:
    """Where each pixel is taken from, [H, W, 2]: scaled about the face by up to 5 %, and shifted."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    scale = draws.uniform("scale", 0.95, 1 / 0.95)
    # 3 % and 1.5 % of the authors' pictures of 224 px.
    shift = np.array([draws.uniform("x", -6.7, 6.7), draws.uniform("y", -3.4, 3.4)]) * unit
    grid = np.stack([x, y], -1)
    return ((grid - centre - shift) / scale + centre).astype(np.float32)


def _bend(draws: Draws, name: str, shape: tuple[int, int], reach: float) -> Array:
    """A smooth displacement [H, W, 2] of up to about ``reach`` (pixels)."""
    coarse = draws.field(f"bend {name}", 12, 12, 2) * np.float32(reach)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _sampled(image: Array, where: Array, interpolation: int) -> Array:
    # Reflected, so that no border of another colour comes in where a crop is tight.
    sampled = cv2.remap(image, where[..., 0], where[..., 1], interpolation, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(sampled, 0, 1)


def _softened(region: Array, unit: float, draws: Draws) -> Array:
    """The region shrunk, then blurred; from 0 to 1."""
    thickness = min(1.0, float(np.sqrt(region.sum())) / (90 * unit))
    shrunk = cv2.erode(region, _disc(draws.uniform("shrink", 2, 12) * unit * thickness))
    reach = draws.uniform("blur", 2, 12) * unit * thickness
    # The authors' kernel is cut off at its reach while its sigma goes to 45: nearly a box.
    size = 2 * max(1, round(reach)) + 1
    blurred = cv2.GaussianBlur(shrunk, (size, size), draws.uniform("sigma", 0.4, 3) * max(reach, 1))
    return blurred / max(float(blurred.max()), 1e-6)


def _disc(radius: float) -> Array:
    size = 2 * round(radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
