"""Who a person is and what a video looks like, drawn from a random generator.

Lengths are in face coordinates: u right, v down, head height = -1 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIDE_PX = 160
SCALE = 1.6
TIGHT_PX = SIDE_PX / SCALE
UNIT_PX = 0.52 * TIGHT_PX
"""Half the height of a head (pixels)."""
EYE_U, EYE_V, NOSE_V, MOUTH_V = 0.34, -0.13, 0.24, 0.55
TEXTURE_PX = 256
SKIN_TONES = (
    (0.93, 0.77, 0.68),
    (0.87, 0.67, 0.54),
    (0.77, 0.56, 0.42),
    (0.60, 0.42, 0.31),
    (0.42, 0.29, 0.22),
)
HAIR_TONES = (
    (0.09, 0.07, 0.06),
    (0.24, 0.15, 0.09),
    (0.45, 0.30, 0.16),
    (0.74, 0.60, 0.38),
    (0.55, 0.53, 0.51),
)
IRIS_TONES = ((0.25, 0.15, 0.08), (0.24, 0.40, 0.55), (0.28, 0.42, 0.25), (0.12, 0.09, 0.07))


@dataclass(frozen=True)
class Person:
    """What stays the same over all videos of one identity."""

    skin: Array
    hair: Array
    iris: Array
    lips: Array
    brow: Array
    width: float
    jaw: float
    eye_size: float
    eye_gap: float
    brow_lift: float
    brow_tilt: float
    brow_weight: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_height: float
    hairline: float
    hair_volume: float
    hair_length: float
    beard: float
    texture: Array
    """Skin relief over face coordinates -1.3 to 1.3 [256, 256], zero mean."""


@dataclass(frozen=True)
class Scene:
    """What stays the same over the frames of one video."""

    light: Array
    """Direction towards the lamp (u, v, towards the camera)."""
    ambient: float
    tint: Array
    background: Array
    """Larger than a frame, so that the camera can move [224, 224, 3]."""
    cloth: Array
    cloth_texture: Array
    motion: Array
    """Phase and frequency of each pose component [8, 2]."""


@dataclass(frozen=True)
class Pose:
    """One moment: where the head is and what the face does."""

    x: float
    y: float
    roll: float
    size: float
    yaw: float
    pitch: float
    mouth: float
    blink: float
    gaze: float


def noise(rng: np.random.Generator, height: int, width: int, sigmas: tuple[float, ...]) -> Array:
    """Sum of Gaussian-filtered white noises, each of unit variance before the sum [height, width]."""
    total = np.zeros((height, width), np.float32)
    for sigma in sigmas:
        small = max(1, int(sigma // 2))
        field = rng.standard_normal((height // small + 2, width // small + 2), dtype=np.float32)
        field = np.asarray(cv2.GaussianBlur(field, (0, 0), max(sigma / small, 0.3)), np.float32)
        field = np.asarray(cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
        total += field / max(float(field.std()), 1e-6)
    return total


def _tone(rng: np.random.Generator, tones: tuple[tuple[float, ...], ...], spread: float) -> Array:
    first, second = rng.integers(len(tones), size=2)
    mix = rng.uniform(0, 0.5)
    tone = (1 - mix) * np.array(tones[first]) + mix * np.array(tones[second])
    return np.clip(tone + rng.normal(0, spread, 3), 0.02, 0.98).astype(np.float32)


def draw_person(rng: np.random.Generator) -> Person:
    """A random identity."""
    skin, hair = _tone(rng, SKIN_TONES, 0.02), _tone(rng, HAIR_TONES, 0.02)
    pores = noise(rng, TEXTURE_PX, TEXTURE_PX, (0.8, 2.0, 5.0, 14.0))
    freckles = -np.clip(noise(rng, TEXTURE_PX, TEXTURE_PX, (1.6,)) - 1.9, 0, 1) * rng.uniform(0, 6)
    return Person(
        skin=skin,
        hair=hair,
        iris=_tone(rng, IRIS_TONES, 0.02),
        lips=np.clip(skin * (0.88, 0.58, 0.60) + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32),
        brow=(hair * rng.uniform(0.5, 0.9)).astype(np.float32),
        width=rng.uniform(0.72, 0.84),
        jaw=rng.uniform(0.10, 0.34),
        eye_size=rng.uniform(0.115, 0.155),
        eye_gap=rng.uniform(0.92, 1.08),
        brow_lift=rng.uniform(0.19, 0.27),
        brow_tilt=rng.uniform(-0.12, 0.18),
        brow_weight=rng.uniform(0.025, 0.055),
        nose_width=rng.uniform(0.10, 0.16),
        nose_length=rng.uniform(0.9, 1.1),
        mouth_width=rng.uniform(0.22, 0.32),
        lip_height=rng.uniform(0.045, 0.085),
        hairline=rng.uniform(-0.78, -0.52),
        hair_volume=rng.uniform(1.04, 1.22),
        hair_length=rng.uniform(-0.3, 1.2),
        beard=max(0.0, rng.uniform(-0.5, 0.5)),
        texture=(pores * rng.uniform(0.4, 1.0) + freckles).astype(np.float32),
    )


def _background(rng: np.random.Generator, side: int) -> Array:
    base = np.clip(rng.uniform(0.2, 0.8) + rng.normal(0, 0.08, 3), 0.05, 0.95)
    image: Array = np.empty((side, side, 3), np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    image[:] = base + rng.normal(0, 0.12) * ramp[:, None, None] + rng.normal(0, 0.12) * ramp[None, :, None]
    for _ in range(rng.integers(2, 7)):
        centre, size = rng.uniform(0, side, 2), rng.uniform(12, 80, 2)
        rect = (tuple(map(float, centre)), tuple(map(float, size)), float(rng.uniform(0, 180)))
        colour = np.clip(base + rng.normal(0, 0.2) + rng.normal(0, 0.06, 3), 0, 1).tolist()
        cv2.fillPoly(image, [cv2.boxPoints(rect).astype(np.int32)], colour, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 4.0)))
    texture = noise(rng, side, side, (0.8, 2.5, 9.0)) * rng.uniform(0.005, 0.035)
    return image * (1 + 2 * texture[..., None])


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random video: light, place, clothes and motion."""
    light = np.array([rng.uniform(-0.9, 0.9), rng.uniform(-0.8, 0.2), 1.0])
    cloth = np.clip(rng.uniform(0.1, 0.7) + rng.normal(0, 0.12, 3), 0.03, 0.9).astype(np.float32)
    return Scene(
        light=(light / np.linalg.norm(light)).astype(np.float32),
        ambient=rng.uniform(0.35, 0.7),
        tint=np.clip(rng.normal(1, 0.06, 3), 0.8, 1.2).astype(np.float32),
        background=_background(rng, SIDE_PX + 64),
        cloth=cloth,
        cloth_texture=noise(rng, SIDE_PX, SIDE_PX, (0.8, 2.0, 6.0)) * rng.uniform(0.01, 0.05),
        motion=np.stack([rng.uniform(0, 2 * np.pi, 8), rng.uniform(0.25, 0.9, 8)], 1).astype(np.float32),
    )


def pose_at(scene: Scene, frame: int) -> Pose:
    """The pose of a frame: slow sines, with a blink now and then."""
    wave = np.sin(scene.motion[:, 0] + scene.motion[:, 1] * frame)
    blink = 1.0 if wave[6] < 0.93 else 0.15
    return Pose(
        x=4.0 * wave[0],
        y=3.0 * wave[1],
        roll=0.11 * wave[2],
        size=1 + 0.05 * wave[3],
        yaw=0.28 * wave[4],
        pitch=0.10 * wave[5],
        mouth=max(0.0, float(wave[7])) * 0.10,
        blink=blink,
        gaze=0.35 * float(wave[5] * wave[0]),
    )
