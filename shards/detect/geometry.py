"""Between a frame and the outputs of a RetinaFace: fitting, priors, decoding, suppression, scaling back.

RetinaFace (arXiv 1905.00641) predicts, for each *prior* (two squares at each cell of three feature
maps), a face score and a box and five landmarks as offsets on the prior. Both backends share this file.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.detect.faces import Faces, Image

Floats = NDArray[np.float32]

STRIDES = (8, 16, 32)
"""Pixels a cell of the feature maps."""
PRIOR_SIDES = ((16, 32), (64, 128), (256, 512))
"""Sides of the priors of a cell of each map (pixels)."""
VARIANCES = (0.1, 0.2)
"""Of centres and landmarks, and of logarithms of sides."""


class Fit(NamedTuple):
    """How a frame lies in the network's input: shrunk to ``width x height``, at the top left."""

    frame_width: int
    frame_height: int
    width: int
    height: int
    input_width: int
    input_height: int


def fit_frame(
    width: int, height: int, size_px: int, fixed: tuple[int | None, int | None] = (None, None)
) -> Fit:
    """Shrinks the long side to ``size_px`` (never enlarges) and pads right and below to multiples of 32.

    Args:
        width: Of the frame (pixels).
        height: Of the frame (pixels).
        size_px: Largest long side (pixels).
        fixed: Height and width of a network that takes one size only.
    """
    fixed_height, fixed_width = fixed
    scale = min(
        1.0,
        size_px / max(width, height),
        (fixed_height or height) / height,
        (fixed_width or width) / width,
    )
    small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
    coarsest = STRIDES[-1]
    return Fit(
        width,
        height,
        small_width,
        small_height,
        fixed_width or -(-small_width // coarsest) * coarsest,
        fixed_height or -(-small_height // coarsest) * coarsest,
    )


def shrink(frame: Image, fit: Fit) -> Image:
    """The frame in the size that ``fit`` says, not padded."""
    if frame.shape[:2] == (fit.height, fit.width):
        return frame
    return np.asarray(cv2.resize(frame, (fit.width, fit.height), interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=32)
def priors(height: int, width: int) -> Floats:
    """Centre x, centre y and side of each prior of an input, in its pixels, [P, 3].

    Order: maps from fine to coarse, rows, columns, sides.
    """
    maps = []
    for stride, sides in zip(STRIDES, PRIOR_SIDES, strict=True):
        y, x, side = np.meshgrid(
            (np.arange(-(-height // stride)) + 0.5) * stride,
            (np.arange(-(-width // stride)) + 0.5) * stride,
            sides,
            indexing="ij",
        )
        maps.append(np.stack([x, y, side], axis=-1).reshape(-1, 3))
    found = np.concatenate(maps).astype(np.float32)
    found.flags.writeable = False  # Shared by all callers.
    return found


def decode(chosen: Floats, boxes: Floats, landmarks: Floats) -> tuple[Floats, Floats]:
    """Boxes x0, y0, x1, y1 [N, 4] and landmarks [N, 5, 2] from offsets on N priors (input pixels).

    Args:
        chosen: Priors [N, 3].
        boxes: Offsets of centres and log sides, [N, 4].
        landmarks: Offsets of x, y of five points, [N, 10].
    """
    centre, side = chosen[:, :2], chosen[:, 2:]
    middle = centre + boxes[:, :2] * np.float32(VARIANCES[0]) * side
    half = side * np.exp(boxes[:, 2:] * np.float32(VARIANCES[1])) / 2
    points = landmarks.reshape(-1, 5, 2) * np.float32(VARIANCES[0]) * side[:, None] + centre[:, None]
    return np.concatenate([middle - half, middle + half], axis=1), points


def finish(boxes: Floats, scores: Floats, landmarks: Floats, fit: Fit, nms: float) -> Faces:
    """Faces of a frame from decoded candidates in input pixels.

    Best score first, of equal scores the earlier candidate; overlapping ones suppressed; scaled to
    the frame. Neither boxes nor landmarks are clipped: both may leave the frame. Candidates that lie
    wholly outside of it (in the padding), or are not finite, are dropped.
    """
    inside = (boxes[:, :2] < (fit.width, fit.height)).all(1) & (boxes[:, 2:] > 0).all(1)
    inside &= np.isfinite(boxes).all(1) & np.isfinite(landmarks).all((1, 2))
    boxes, scores, landmarks = boxes[inside], scores[inside], landmarks[inside]
    order = np.argsort(-scores, kind="stable")
    kept = order[suppress(boxes[order], nms)]
    return enlarge(Faces(boxes[kept], scores[kept].clip(0, 1), landmarks[kept]), fit)


def enlarge(faces: Faces, fit: Fit) -> Faces:
    """Faces of the shrunk frame in pixels of the frame."""
    ratio = np.array([fit.frame_width / fit.width, fit.frame_height / fit.height], np.float32)
    return Faces(faces.boxes * np.tile(ratio, 2), faces.scores, faces.landmarks * ratio)


def suppress(boxes: Floats, threshold: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: which boxes stay, given best first.

    A box goes if its intersection over union with a better one that stays exceeds ``threshold``.
    """
    areas = area(boxes)
    left, kept = np.arange(len(boxes)), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        shared = intersection(boxes[best], boxes[left])
        left = left[shared <= threshold * (areas[best] + areas[left] - shared)]
    return np.array(kept, np.intp)


def area(boxes: Floats) -> Floats:
    """Area of each box, [..., 4] -> [...]."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)


def intersection(first: Floats, second: Floats) -> Floats:
    """Shared area of boxes, broadcast: [..., 4] and [..., 4] -> [...]."""
    low = np.maximum(first[..., :2], second[..., :2])
    return (np.minimum(first[..., 2:], second[..., 2:]) - low).clip(0).prod(-1)
