"""One clean frame of a stylised talking head, before any camera.

Everything is a soft function of face coordinates (u right, v down, head height = -1 to 1), so that
landmarks and regions are known exactly. Images are float32 [H, W, 3], RGB, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from shards.demo.people import (
    EYE_U,
    EYE_V,
    MOUTH_V,
    NOSE_V,
    SIDE_PX,
    TEXTURE_PX,
    UNIT_PX,
    Array,
    Person,
    Pose,
    Scene,
)


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


@lru_cache(maxsize=1)
def grid() -> tuple[Array, Array]:
    """Column and row of every pixel; not to be changed."""
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
    x, y = grid()
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
    """``colour`` over ``image`` where ``mask``; only the box around the mask is computed."""
    window = _window(mask)
    if window is None:
        return image
    part, weight = image[window], mask[window]
    if colour.ndim == 1:
        colour = _row(colour, part)
    elif colour.shape == image.shape:
        colour = colour[window]
    image = image.copy()
    image[window] = part + (colour - part) * _planes(weight)
    return image


# numpy is slow where it broadcasts along an innermost axis of 3; these two avoid it.
def _row(colour: Array, image: Array) -> Array:
    return np.tile(colour, (image.shape[1], 1))


def _planes(field: Array) -> Array:
    return np.asarray(cv2.merge((field, field, field)))


def tinted(colour: Array, field: Array) -> Array:
    """The colour times a field of brightness [H, W]."""
    return _row(colour, field) * _planes(field)


def _window(mask: Array) -> tuple[slice, slice] | None:
    """The smallest box with all of a mask, or ``None`` if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


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
    return skin * _planes(light) + _planes(0.10 * shine)


def _eyes(image: Array, person: Person, pose: Pose, u: Array, v: Array) -> Array:
    for side in (-1.0, 1.0):
        du, dv = u - side * EYE_U * person.eye_gap, v - EYE_V
        near = (np.abs(du) < 1.5 * person.eye_size + 0.07) & (np.abs(dv + 0.1) < 0.35)
        if window := _window(near):
            image = image.copy()
            image[window] = _eye(image[window], person, pose, side, du[window], dv[window])
    return image


def _eye(image: Array, person: Person, pose: Pose, side: float, du: Array, dv: Array) -> Array:
    """An eye and its brow around their centre ``du = dv = 0``."""
    size = person.eye_size
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
    lid = soft(np.abs(dv + opening * (1 - (du / size) ** 2)) - 0.014, 0.02) * soft(np.abs(du) - size, 0.03)
    image = paint(image, person.brow * 0.5, 0.85 * lid)
    arch = dv + person.brow_lift + side * person.brow_tilt * du - 0.9 * (du / 0.5) ** 2 * 0.12
    brow = soft(np.abs(arch) - person.brow_weight, 0.03) * soft(np.abs(du) - size * 1.5, 0.06)
    return paint(image, person.brow, 0.8 * brow)


def _nose_and_mouth(image: Array, person: Person, pose: Pose, u: Array, v: Array) -> Array:
    if window := _window((np.abs(u) < 0.42) & (np.abs(v - 0.52) < 0.35)):
        image = image.copy()
        image[window] = _paint_nose_and_mouth(image[window], person, pose, u[window], v[window])
    return image


def _paint_nose_and_mouth(image: Array, person: Person, pose: Pose, u: Array, v: Array) -> Array:
    tip = NOSE_V * person.nose_length
    for side in (-1.0, 1.0):
        nostril = ellipse(u, v, side * person.nose_width * 0.5, tip + 0.085, 0.035, 0.02, 0.03)
        image = paint(image, image * 0.42, 0.8 * nostril)
    wide, lip, gap = person.mouth_width, person.lip_height, pose.mouth
    span = np.clip(1 - (u / wide) ** 2, 0, 1)
    dv = v - MOUTH_V
    upper = dv + (gap * 0.5 + lip) * span**0.7 - 0.02 * np.exp(-((u / 0.05) ** 2))
    lower = dv - (gap * 1.0 + lip * 1.25) * span**0.7
    image = paint(
        image, tinted(person.lips, 0.72 + 0.3 * image[..., 0]), soft(-upper) * soft(lower) * (span > 0)
    )
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
    cloth = tinted(scene.cloth, 0.8 + 0.3 * scene.cloth_texture * 3 - 0.15 * np.abs(u))
    hair = tinted(person.hair, 0.75 + 0.25 * np.sin(9 * u + 2 * v) * 0.3)
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
    colour = tinted(person.hair, scene.ambient + 0.55 + 0.22 * strands)
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
    image = np.clip(image * _row(scene.tint, image), 0, 1).astype(np.float32)
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
