"""Stylised talking heads: who a person is, what a video looks like, and one clean frame of it.

Everything is a soft function of face coordinates (u right, v down, head height = -1 to 1), so that
landmarks and regions are known exactly. Images are float32 [H, W, 3], RGB, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from functools import lru_cache

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


@dataclass(frozen=True)
class Frame:
    """A clean rendering with its exact geometry."""

    image: Array
    landmarks: Array
    """Eyes, nose, mouth corners in pixels [5, 2], image-left first."""
    box: tuple[float, float, float, float]
    u: Array
    v: Array
    """Face coordinates of every pixel (yaw and pitch taken out)."""


def noise(rng: np.random.Generator, height: int, width: int, sigmas: tuple[float, ...]) -> Array:
    """Sum of Gaussian-filtered white noises, each of unit variance before the sum [height, width]."""
    total = np.zeros((height, width), np.float32)
    for sigma in sigmas:
        small = max(1, int(sigma // 2))
        field = rng.standard_normal((height // small + 2, width // small + 2), dtype=np.float32)
        field = cv2.GaussianBlur(field, (0, 0), max(sigma / small, 0.3))
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
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
    image = np.empty((side, side, 3), np.float32)
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


@lru_cache(maxsize=1)
def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32)
    return x, y


def to_pixels(u: Array, v: Array, pose: Pose, depth: float) -> Array:
    """Face coordinates to pixels, for points ``depth`` in front of the turning axis [N, 2]."""
    u, v = u + pose.yaw * depth, v + pose.pitch * depth
    unit, cos, sin = UNIT_PX * pose.size, np.cos(pose.roll), np.sin(pose.roll)
    x = SIDE_PX / 2 + pose.x + unit * (cos * u - sin * v)
    y = SIDE_PX / 2 + pose.y + unit * (sin * u + cos * v)
    return np.stack([x, y], -1).astype(np.float32)


def _to_face(pose: Pose) -> tuple[Array, Array]:
    x, y = _grid()
    x, y = x - (SIDE_PX / 2 + pose.x), y - (SIDE_PX / 2 + pose.y)
    unit, cos, sin = UNIT_PX * pose.size, np.cos(pose.roll), np.sin(pose.roll)
    return ((cos * x + sin * y) / unit).astype(np.float32), ((cos * y - sin * x) / unit).astype(np.float32)


def soft(field: Array, width: float = 0.025) -> Array:
    """Antialiased inside (1) of ``field < 0``, an edge ``width`` wide in units of the field."""
    return np.clip(0.5 - field / (2 * width), 0, 1)


def ellipse(u: Array, v: Array, cu: float, cv_: float, ru: float, rv: float, width: float = 0.025) -> Array:
    """Antialiased ellipse."""
    radius = np.sqrt(((u - cu) / ru) ** 2 + ((v - cv_) / rv) ** 2)
    return soft((radius - 1) * min(ru, rv), width)


def paint(image: Array, colour: Array, mask: Array) -> Array:
    """``colour`` over ``image`` where ``mask``."""
    return image + (colour - image) * mask[..., None]


def _head_radius(person: Person, u: Array, v: Array) -> Array:
    taper = 1 - person.jaw * np.clip(v + 0.1, 0, 1) ** 2
    return np.sqrt((u / (person.width * taper)) ** 2 + v**2)


def _relief(person: Person, u: Array, v: Array) -> Array:
    to_texel = (TEXTURE_PX - 1) / 2.6
    return cv2.remap(
        person.texture, (u + 1.3) * to_texel, (v + 1.3) * to_texel, cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def _shade(person: Person, scene: Scene, u: Array, v: Array, radius: Array) -> tuple[Array, Array]:
    """Diffuse light and highlight on the head, nose and brow ridge included."""
    nz = np.sqrt(np.clip(1 - np.minimum(radius, 0.98) ** 2, 0.04, 1))
    ridge = np.exp(-((u / person.nose_width) ** 2)) * np.exp(-(((v - 0.08) / 0.26) ** 2))
    nu = u / person.width * 0.9 + 1.1 * ridge * u / person.nose_width
    nv = v * 0.8 + 0.5 * np.exp(-(((v - NOSE_V - 0.1) / 0.07) ** 2) - (u / 0.14) ** 2)
    norm = np.sqrt(nu**2 + nv**2 + nz**2)
    lit = np.clip((nu * scene.light[0] + nv * scene.light[1] + nz * scene.light[2]) / norm, 0, 1)
    return scene.ambient + (1.15 - scene.ambient) * lit, lit**14


def _skin(person: Person, scene: Scene, u: Array, v: Array, radius: Array) -> Array:
    light, shine = _shade(person, scene, u, v, radius)
    relief = _relief(person, u, v)
    skin = np.broadcast_to(person.skin, (*u.shape, 3))
    blush = np.exp(-(((np.abs(u) - 0.42) / 0.2) ** 2) - ((v - 0.22) / 0.2) ** 2)
    skin = paint(skin, person.skin * np.array([1.0, 0.78, 0.78], np.float32), 0.35 * blush)
    beard = person.beard * soft(-(v - 0.38) + 0.35 * np.exp(-((u / 0.45) ** 2)) - 0.2, 0.25)
    beard = beard * (1 - ellipse(u, v, 0, MOUTH_V, person.mouth_width, 0.1, 0.08))
    skin = paint(skin, person.hair, np.clip(beard * (1 + 0.25 * relief), 0, 1))
    hollow = sum(np.exp(-(((u - side * EYE_U) / 0.2) ** 2) - ((v - EYE_V) / 0.13) ** 2) for side in (-1, 1))
    light = light * (1 - 0.13 * hollow) * (1 + 0.035 * relief)
    return skin * light[..., None] + 0.10 * shine[..., None]


def _eyes(image: Array, person: Person, pose: Pose, u: Array, v: Array) -> Array:
    size = person.eye_size
    for side in (-1.0, 1.0):
        du, dv = u - side * EYE_U * person.eye_gap, v - EYE_V
        opening = size * 0.52 * pose.blink
        inside = soft(np.abs(dv) - opening * (1 - (du / size) ** 2), 0.02) * soft(np.abs(du) - size, 0.02)
        eye = np.broadcast_to(np.array([0.90, 0.89, 0.87], np.float32), image.shape)
        shift = pose.gaze * size
        eye = paint(eye, person.iris, ellipse(du, dv, shift, 0, size * 0.48, size * 0.48))
        eye = paint(
            eye, np.array([0.03, 0.03, 0.03], np.float32), ellipse(du, dv, shift, 0, size * 0.22, size * 0.22)
        )
        eye = paint(eye, np.array([1, 1, 1], np.float32), ellipse(du, dv, shift - 0.02, -0.025, 0.018, 0.018))
        image = paint(image, eye, inside)
        lid = soft(np.abs(dv + opening * (1 - (du / size) ** 2)) - 0.014, 0.02) * soft(
            np.abs(du) - size, 0.03
        )
        image = paint(image, person.brow * 0.5, 0.85 * lid)
        arch = dv + person.brow_lift + side * person.brow_tilt * du - 0.9 * (du / 0.5) ** 2 * 0.12
        brow = soft(np.abs(arch) - person.brow_weight, 0.03) * soft(np.abs(du) - size * 1.5, 0.06)
        image = paint(image, person.brow, 0.8 * brow)
    return image


def _nose_and_mouth(image: Array, person: Person, pose: Pose, u: Array, v: Array) -> Array:
    tip = NOSE_V * person.nose_length
    for side in (-1.0, 1.0):
        nostril = ellipse(u, v, side * person.nose_width * 0.5, tip + 0.085, 0.035, 0.02, 0.03)
        image = paint(image, image * 0.42, 0.8 * nostril)
    wide, lip, gap = person.mouth_width, person.lip_height, pose.mouth
    span = np.clip(1 - (u / wide) ** 2, 0, 1)
    dv = v - MOUTH_V
    upper = dv + (gap * 0.5 + lip) * span**0.7 - 0.02 * np.exp(-((u / 0.05) ** 2))
    lower = dv - (gap * 1.0 + lip * 1.25) * span**0.7
    image = paint(image, person.lips * (0.72 + 0.3 * image[..., :1]), soft(-upper) * soft(lower) * (span > 0))
    inner = soft(-(dv + gap * 0.5 * span)) * soft(dv - gap * span, 0.02) * (span > 0) if gap > 0.004 else None
    if inner is None:
        return paint(image, image * 0.45, soft(np.abs(dv) - 0.008, 0.02) * soft(np.abs(u) - wide, 0.04))
    image = paint(image, np.array([0.16, 0.05, 0.05], np.float32), inner)
    teeth = inner * soft(dv + gap * 0.5 * span - 0.35 * gap - 0.012)
    return paint(image, np.array([0.86, 0.84, 0.78], np.float32), 0.9 * teeth)


def _behind(person: Person, scene: Scene, pose: Pose, u: Array, v: Array) -> Array:
    """Background, clothes, neck and hair behind the head."""
    x0, y0 = round(32 + 1.2 * pose.y), round(32 + 1.2 * pose.x)
    image = scene.background[y0 : y0 + SIDE_PX, x0 : x0 + SIDE_PX]
    cloth = scene.cloth * (0.8 + 0.3 * scene.cloth_texture[..., None] * 3 - 0.15 * np.abs(u)[..., None])
    hair = person.hair * (0.75 + 0.25 * np.sin(9 * u + 2 * v)[..., None] * 0.3)
    back = soft(np.sqrt((u / (person.width * person.hair_volume * 1.02)) ** 2 + (v / 1.1) ** 2) - 1)
    back = np.maximum(back, soft(np.abs(u) - person.width * person.hair_volume, 0.05) * soft(-v))
    image = paint(image, hair, back * soft(v - person.hair_length, 0.08))
    image = paint(
        image, person.skin * 0.62 * scene.ambient**0.3, soft(np.abs(u) - 0.42, 0.05) * soft(0.3 - v)
    )
    return paint(image, cloth, soft(1.18 + 0.18 * np.cos(2.2 * u) - 0.1 * (np.abs(u) > 9) - v, 0.04))


def _hair(image: Array, person: Person, scene: Scene, u: Array, v: Array) -> Array:
    angle = np.arctan2(v + 0.4, u)
    strands = 0.5 * np.sin(38 * angle) * np.sin(17 * angle + 5 * v) + 0.35 * _relief(person, v, u)
    outer = soft(np.sqrt((u / (person.width * person.hair_volume)) ** 2 + ((v + 0.04) / 1.1) ** 2) - 1, 0.04)
    line = (
        v - person.hairline - 0.75 * (np.abs(u) / person.width) ** 4 + 0.05 * np.sin(7 * u + 30 * person.jaw)
    )
    colour = person.hair[None, None] * (scene.ambient + 0.55 + 0.22 * strands)[..., None]
    return paint(image, colour, outer * soft(line, 0.04) * soft(v - 0.25, 0.1))


def render(person: Person, scene: Scene, pose: Pose) -> Frame:
    """One clean frame, before any camera."""
    u, v = _to_face(pose)
    image = _behind(person, scene, pose, u, v)
    radius = _head_radius(person, u, v)
    bulge = np.sqrt(np.clip(1 - np.minimum(radius, 1) ** 2, 0, 1))
    fu, fv = u - pose.yaw * bulge, v - pose.pitch * bulge
    face = _skin(person, scene, fu, fv, radius)
    face = _nose_and_mouth(_eyes(face, person, pose, fu, fv), person, pose, fu, fv)
    image = paint(image, face, soft(radius - 1))
    image = _hair(image, person, scene, u - 0.5 * pose.yaw * bulge, v)
    image = np.clip(image * scene.tint, 0, 1).astype(np.float32)
    return Frame(image, _landmarks(person, pose), _box(person, pose), fu, fv)


def _landmarks(person: Person, pose: Pose) -> Array:
    eye, mouth = EYE_U * person.eye_gap, person.mouth_width
    u = np.array([-eye, eye, 0, -mouth, mouth], np.float32)
    v = np.array([EYE_V, EYE_V, NOSE_V * person.nose_length, MOUTH_V, MOUTH_V], np.float32)
    flat = np.sqrt((u / person.width) ** 2 + v**2)
    for _ in range(4):  # the surface under a shown point depends on where yaw and pitch move it
        bulge = np.sqrt(np.clip(1 - np.minimum(flat, 1) ** 2, 0, 1))
        flat = np.asarray(_head_radius(person, u + pose.yaw * bulge, v + pose.pitch * bulge))
    return to_pixels(u + pose.yaw * bulge, v + pose.pitch * bulge, pose, 0.0)


def _box(person: Person, pose: Pose) -> tuple[float, float, float, float]:
    corner = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], np.float32)
    points = to_pixels(corner[:, 0] * person.width, corner[:, 1], pose, 0.0)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)
