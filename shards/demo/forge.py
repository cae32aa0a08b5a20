"""Forgeries by blending, and the camera chain that reals and fakes go through alike.

A fake is ``mask * source + (1 - mask) * target`` as in self-blended images (SBI, arXiv 2204.08376):
the source is a processed face (of the same or of another person), the mask is deformed, blurred and
scaled by a blending ratio. Parameters are drawn once a video. Images are float32 [H, W, 3], RGB, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from shards.blend.pixels import recompress, to_bytes
from shards.demo.people import SIDE_PX, Array, noise
from shards.demo.render import Frame, grid, soft

BLENDING_RATIOS = (0.75, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """A camera and the codec behind it, drawn once a video."""

    defocus: float
    """Gaussian blur (pixels)."""
    read_noise: float
    """Signal-independent noise (fraction of full scale)."""
    shot_noise: float
    """Noise at full brightness (fraction of full scale)."""
    quality: int
    """JPEG quality of the recording."""


@dataclass(frozen=True)
class Codec:
    """The last encoding of a published video; reals and fakes draw it from one distribution."""

    resize: float
    """Factor of the side that the video is shrunk to before it is encoded."""
    quality: int
    """JPEG quality."""


@dataclass(frozen=True)
class Forgery:
    """One forger's settings for a video."""

    grain: float
    """Noise added to the source (fraction of full scale)."""
    blur: float
    """Gaussian blur of the source (pixels)."""
    sharpen: float
    """Unsharp gain of the source (factor)."""
    shrink: float
    """Resolution that the source face is made in, relative to the target's (factor)."""
    gain: Array
    offset: Array
    scale: float
    shift: Array
    wobble: Array
    """Elastic displacement of the source [H, W, 2] (pixels)."""
    mask_wobble: Array
    """Elastic displacement of the mask [H, W, 2] (pixels)."""
    feather: float
    """Blur of the mask (pixels)."""
    ratio: float
    region: int
    """Which region a self-blend takes."""


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera."""
    return Camera(
        defocus=rng.uniform(0.3, 0.9),
        read_noise=float(np.exp(rng.uniform(np.log(0.006), np.log(0.035)))),
        shot_noise=float(np.exp(rng.uniform(np.log(0.006), np.log(0.035)))),
        quality=int(rng.integers(92, 99)),
    )


def draw_codec(rng: np.random.Generator) -> Codec:
    """A random final encoding."""
    return Codec(resize=rng.uniform(0.9, 1.0), quality=int(rng.integers(90, 98)))


def _resize(image: Array, side: int, filter_: int) -> Array:
    return cv2.resize(image, (side, side), interpolation=filter_)


def capture(image: Array, camera: Camera, rng: np.random.Generator) -> Array:
    """What the camera records of a clean frame: defocus, sensor noise, JPEG."""
    image = cv2.GaussianBlur(image, (0, 0), camera.defocus)
    sigma = np.sqrt(camera.read_noise**2 + camera.shot_noise**2 * image)
    image = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return recompress(image, camera.quality)


def publish(image: Array, codec: Codec) -> np.ndarray:
    """The published frame (uint8): shrunk, encoded, and back at the crop's side."""
    side = round(SIDE_PX * codec.resize)
    image = recompress(_resize(image, side, cv2.INTER_AREA), codec.quality)
    return to_bytes(_resize(image, SIDE_PX, cv2.INTER_CUBIC))


def _elastic(rng: np.random.Generator, amplitude: float, sigma: float) -> Array:
    return np.stack([noise(rng, SIDE_PX, SIDE_PX, (sigma,)) * amplitude for _ in range(2)], -1)


def draw_forgery(rng: np.random.Generator) -> Forgery:
    """A random forger."""
    kind = rng.integers(3)
    return Forgery(
        grain=rng.uniform(0.01, 0.04) if kind == 2 else 0.0,
        blur=rng.uniform(0.5, 1.1) if kind == 0 else 0.0,
        sharpen=rng.uniform(0.6, 1.8) if kind == 1 else 0.0,
        shrink=rng.uniform(0.4, 0.65),
        gain=rng.normal(1, 0.05, 3).astype(np.float32),
        offset=rng.normal(0, 0.02, 3).astype(np.float32),
        scale=rng.uniform(0.96, 1.04),
        shift=rng.uniform(-2.0, 2.0, 2).astype(np.float32),
        wobble=_elastic(rng, 0.8, 14.0),
        mask_wobble=_elastic(rng, 3.0, 18.0),
        feather=rng.uniform(1.5, 5.0),
        ratio=float(rng.choice(BLENDING_RATIOS)),
        region=int(rng.integers(4)),
    )


def _remap(image: Array, displacement: Array, border: int = cv2.BORDER_REFLECT) -> Array:
    x, y = grid()
    return cv2.remap(
        image, x + displacement[..., 0], y + displacement[..., 1], cv2.INTER_CUBIC, borderMode=border
    )


def _displace(image: Array, forgery: Forgery) -> Array:
    x, y = grid()
    centre = SIDE_PX / 2
    field = np.stack([(x - centre), (y - centre)], -1) * (1 / forgery.scale - 1) + forgery.shift
    return _remap(image, (field + forgery.wobble).astype(np.float32))


def process(source: Array, forgery: Forgery, rng: np.random.Generator) -> Array:
    """Warps, recolours and resamples the source face."""
    side = round(SIDE_PX * forgery.shrink)
    source = _displace(source, forgery)
    source = _resize(_resize(source, side, cv2.INTER_AREA), SIDE_PX, cv2.INTER_CUBIC)
    if forgery.blur:
        source = cv2.GaussianBlur(source, (0, 0), forgery.blur)
    if forgery.sharpen:
        source = source + forgery.sharpen * (source - cv2.GaussianBlur(source, (0, 0), 1.5))
    source = source * forgery.gain + forgery.offset
    return source + forgery.grain * rng.standard_normal(source.shape, dtype=np.float32)


def blend(target: Array, source: Array, mask: Array, forgery: Forgery) -> Array:
    """Source over target through the deformed, blurred and scaled mask."""
    mask = cv2.GaussianBlur(_remap(mask, forgery.mask_wobble), (0, 0), forgery.feather)
    mask = np.clip(mask, 0, 1)[..., None] * forgery.ratio
    return np.clip(target + mask * (source - target), 0, 1).astype(np.float32)


def whole_face(frame: Frame) -> Array:
    """Brows to chin."""
    radius = np.sqrt((frame.u / 0.62) ** 2 + ((frame.v - 0.16) / 0.68) ** 2)
    return soft(radius - 1, 0.03)


def inner_face(frame: Frame) -> Array:
    """A rounded box from brows to mouth, cheek to cheek."""
    radius = (np.abs(frame.u) / 0.58) ** 4 + (np.abs(frame.v - 0.16) / 0.56) ** 4
    return soft(radius - 1, 0.05)


def lower_face(frame: Frame) -> Array:
    """Nose to chin."""
    radius = np.sqrt((frame.u / 0.55) ** 2 + ((frame.v - 0.45) / 0.46) ** 2)
    return soft(radius - 1, 0.04)


def hull(frame: Frame) -> Array:
    """From the brows to the chin, narrowing towards it like the hull of a face's landmarks."""
    width = 0.68 - 0.34 * np.clip(frame.v, 0, 1)
    return soft(np.abs(frame.u) - width, 0.05) * soft(np.abs(frame.v - 0.26) - 0.60, 0.05)


def upper_face(frame: Frame) -> Array:
    """Forehead to nose."""
    radius = (frame.u / 0.64) ** 2 + ((frame.v + 0.08) / 0.42) ** 2
    return soft(np.sqrt(radius) - 1, 0.04)


def match_colour(source: Array, target: Array, mask: Array) -> Array:
    """Gives the source the target's mean and deviation under the mask, channel by channel (Reinhard)."""
    weight = mask[..., None] / max(float(mask.sum()), 1e-6)
    means = [(image * weight).sum((0, 1)) for image in (source, target)]
    stds = [
        np.sqrt((((image - mean) ** 2) * weight).sum((0, 1)))
        for image, mean in zip((source, target), means, strict=True)
    ]
    gain = np.clip(stds[1] / np.maximum(stds[0], 1e-3), 0.6, 1.6)
    return ((source - means[0]) * gain + means[1]).astype(np.float32)
