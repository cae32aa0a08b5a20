"""Makes one image look as if another camera, codec or resolution had made it.

The source-target mismatch of SBI (arXiv 2204.08376, section 3.2), with the ranges of its authors'
code where they act. Theirs move the hue of 8-bit images by at most .3 of 180 steps, which rounds to
nothing; here it moves by up to 4 degrees.
"""

from __future__ import annotations

import cv2
import numpy as np

from shards.blend.draws import Draws
from shards.blend.pixels import Array, recompress


def augment(image: Array, draws: Draws) -> Array:
    """Another colour, another sharpness and, sometimes, another compression.

    Args:
        image: RGB float32, 0 to 1, [H, W, 3].
        draws: The numbers of this image.

    Returns:
        The image anew, 0 to 1.
    """
    image = _recoloured(image, draws)
    # Either way the source differs in sharpness, to one side or the other.
    image = _coarsened(image, draws) if draws.chance("coarsen", 0.5) else _sharpened(image, draws)
    image = np.clip(image, 0, 1)
    if draws.chance("recompress", 0.3):
        image = recompress(image, int(draws.uniform("quality", 50, 96)))
    return image


def _recoloured(image: Array, draws: Draws) -> Array:
    if draws.chance("shift", 0.3):
        image = image + draws.field("channels", 3) * np.float32(20 / 255)
    hsv = cv2.cvtColor(np.clip(image, 0, 1), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + draws.uniform("hue", -4, 4)) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * draws.uniform("saturation", 0.8, 1.25), 0, 1)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    middle = float(image.mean())
    gain = 1 + draws.uniform("contrast", -0.1, 0.1)
    return (image - middle) * np.float32(gain) + np.float32(middle + draws.uniform("brightness", -0.1, 0.1))


def _coarsened(image: Array, draws: Draws) -> Array:
    height, width = image.shape[:2]
    factor = draws.uniform("factor", 2, 4)
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


def _sharpened(image: Array, draws: Draws) -> Array:
    detail = image - cv2.GaussianBlur(image, (0, 0), 1.0)
    return image + np.float32(draws.uniform("gain", 0.6, 2.0)) * detail
