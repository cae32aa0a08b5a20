"""Where a fake face would lie: outlines from five landmarks and the box, or from 68 or 81 points."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.blend.draws import Draws

Points = NDArray[np.float64]
"""[N, 2], x and y (pixels)."""
Box = tuple[float, float, float, float]

POINT_COUNTS = (5, 68, 81)
"""Eyes, nose, mouth corners; iBUG 300-W; the same with 13 points of the forehead."""
_ARC = np.linspace(0, 2 * np.pi, 48, endpoint=False)

# Upper and lower end and half width in lengths of eyes to mouth; v = -.5 at the eyes, .5 at the mouth.
_FIVE = {
    "face": (-1.2, 1.08, 0.95),
    "brows to chin": (-0.9, 1.05, 0.92),
    "inner": (-0.85, 0.72, 0.72),
    "upper": (-0.9, 0.25, 0.85),
    "lower": (-0.2, 1.0, 0.75),
}
_MANY = {
    "all": range(81),
    "brows to chin": range(68),
    "inner": range(17, 68),
    "lower": [*range(2, 15), *range(29, 36)],
}


def outline(points: Points, box: Box | None, draws: Draws) -> Points:
    """A random one of the regions of a face, as an outline.

    With 68 or 81 points they are hulls as in SBI (arXiv 2204.08376, section 3.2) and Face X-ray: all,
    without forehead, brows to mouth, nose to chin. With five points an oval stands for each of these
    (and for brows to nose); its ends and widths are those of such hulls on an average face, turned
    with the face, and the box says how far its two sides reach, so that a turned head's is lopsided.

    Args:
        points: 5, 68 or 81 landmarks, [N, 2].
        box: Face box of the detector; it matters with five points only.
        draws: The numbers of this fake.

    Returns:
        Corners of the outline, [M, 2].

    Raises:
        ValueError: As :func:`face_length`.
    """
    if len(points) == 5:
        top, bottom, width = _FIVE[draws.choice("region", list(_FIVE))]
        return _oval(points, box, top, bottom, width * draws.uniform("width", 0.92, 1.05))
    face_length(points)
    chosen = [number for number in _MANY[draws.choice("region", list(_MANY))] if number < len(points)]
    hull: Any = cv2.convexHull(points[chosen].astype(np.float32))
    return np.asarray(hull[:, 0], np.float64)


def face_length(points: Points) -> float:
    """Length of a face: eyes to mouth or, as those come close in a bowed head, from eye to eye (pixels).

    Raises:
        ValueError: Not 5, 68 or 81 finite points, or a face of less than a pixel.
    """
    if len(points) not in POINT_COUNTS or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} landmarks (5, 68 or 81 finite ones wanted)")
    eyes, mouth = _eyes_and_mouth(points)
    length = float(max(np.hypot(*(mouth.mean(0) - eyes.mean(0))), np.hypot(*(eyes[1] - eyes[0]))))
    if length < 1:
        raise ValueError("landmarks lie in one point")
    return length


def fill(corners: Points, height: int, width: int) -> NDArray[np.float32]:
    """1 inside of an outline and 0 elsewhere, [H, W]."""
    mask: Any = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], (1,))
    return mask.astype(np.float32)


def _eyes_and_mouth(points: Points) -> tuple[Points, Points]:
    """Two eyes and two mouth corners, image-left first."""
    if len(points) == 5:
        return points[:2], points[3:]
    return np.stack([points[36:42].mean(0), points[42:48].mean(0)]), points[[48, 54]]


def _oval(points: Points, box: Box | None, top: float, bottom: float, width: float) -> Points:
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    length = face_length(points)
    down = mouth - eyes
    across = points[1] - points[0]
    # The line of the eyes and that of the middle both tell the turn; of a profile only the latter.
    axis = down / length + np.array([-across[1], across[0]]) / length
    down = axis / max(float(np.hypot(*axis)), 1e-6)
    right = np.array([down[1], -down[0]])
    middle = (eyes + mouth) / 2
    sides = _sides(middle, right, length, box)
    u, v = np.cos(_ARC), np.sin(_ARC)
    # A chin is narrower than a brow, and cheeks are fuller than an ellipse.
    u = np.sign(u) * np.abs(u) ** 0.8 * np.where(v > 0, 1 - 0.22 * v, 1)
    u *= width * np.where(u < 0, sides[0], sides[1])
    v = (top + bottom) / 2 + v * (bottom - top) / 2
    return middle + length * (u[:, None] * right + v[:, None] * down)


def _sides(middle: Points, right: Points, length: float, box: Box | None) -> tuple[float, float]:
    """Reach to image-left and image-right, relative to a face seen from the front."""
    if box is None:
        return 1.0, 1.0
    reach = max(0.5, abs(float(right[0])))
    left_px, right_px = (middle[0] - box[0]) * reach, (box[2] - middle[0]) * reach
    left, right_ = (float(np.clip(side / length, 0.4, 1.05)) for side in (left_px, right_px))
    return left, right_
