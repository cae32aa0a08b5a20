"""Cuts a face: five landmarks -> a similarity onto a template -> a square crop.

Coordinates are as in the public preprocessing: landmarks are taken as positions of OpenCV's grid,
where (0, 0) is the *centre* of the first pixel, and the middle of the template comes to
``size_px / 2``, half a pixel right of and below the middle of the crop. Trained models know it so.
Cutting the middle of a wider crop keeps to it, since both sides then change by whole pixels.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.detect.faces import Image

Template = Literal["gend", "dfb"]
Matrix = NDArray[np.float64]
"""Affine map [2, 3] from pixels of the frame to pixels of the crop."""
Points = NDArray[np.float64]
"""[N, 2], x and y (pixels)."""

_GEND = np.array([[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]])
_DFB = np.array(
    [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
)
TEMPLATES: dict[Template, Points] = {"gend": _GEND, "dfb": (_DFB + np.array([8.0, 0.0])) / 112}
"""Eyes, nose and mouth corners in the unit square of the tight face, image-left first: of GenD
(arXiv 2508.06248), and of DeepfakeBench (the 112-px points of ArcFace at 96 px, moved by 8)."""
MAX_SAMPLED_PX = 4096
"""Side of what is sampled before it is averaged (pixels); it bounds memory for vast faces."""
_FLATTEST = 1e-3
"""Least ratio of the narrow to the long extent of five landmarks; of a profile it is about .15."""


def to_crop(landmarks: ArrayLike, template: Template, scale: float, size_px: int) -> Matrix:
    """The similarity (turn, scale, shift) that brings a face's landmarks onto a template.

    The template fills the middle ``1 / scale`` of the crop. ``gend`` fits by least median of squares
    (OpenCV's LMEDS) as its authors do: a point far off has no say, but where two of five are off the
    face turns by up to some degrees. Equal points give equal bits in any thread. ``dfb`` is the least
    squares fit (Umeyama, PAMI 13(4), 1991) of its authors.

    Args:
        landmarks: Image-left eye, image-right eye, nose, image-left and image-right mouth corner in
            pixels of the frame, [5, 2].
        template: Where the points go.
        scale: Margin, as a multiple of the tight face.
        size_px: Side of the crop (pixels).

    Returns:
        The map from frame to crop, [2, 3].

    Raises:
        ValueError: The points are no five finite ones, or lie in one point or on one line.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"landmarks {points.tolist()} are not five finite points")
    long, narrow = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if narrow <= _FLATTEST * max(long, _FLATTEST):
        raise ValueError("landmarks lie in one point or on one line")
    target = ((TEMPLATES[template] - 0.5) / scale + 0.5) * size_px
    matrix = _least_median(points, target) if template == "gend" else _least_squares(points, target)
    if matrix is None or not np.isfinite(matrix).all() or not _zoom(matrix) > 1e-6:
        raise ValueError("landmarks fit no similarity")
    return matrix


def crop(frame: Image, matrix: Matrix, size_px: int) -> Image:
    """Cuts the crop; what lies outside of the frame is black.

    Enlarged faces, and faces reduced by less than 2, are sampled bilinearly as in the public
    preprocessing. From a reduction of 2 on that skips pixels of the frame; the crop is then sampled
    k times as dense (k = the reduction, rounded down) and averaged over k x k pixels. On a texture of
    1/f spectrum reduced by 2.1 to 5, the crop is 43 to 55 dB from one averaged over every pixel,
    bilinear sampling alone 25 to 31 dB; it takes 2 to 15 ms instead of .4 to 1.2.

    The middle of a stored crop (scale 1.6, 320 px) against a direct crop at 1.3 (256 px), both at 224
    px: 49 dB in the mean and 37 at least over 138 faces of real videos and photographs.

    Args:
        frame: RGB [H, W, 3].
        matrix: Map from :func:`to_crop`.
        size_px: Side of the crop (pixels).

    Returns:
        RGB [size_px, size_px, 3].
    """
    dense = max(1, min(int(1 / _zoom(matrix) + 1e-9), MAX_SAMPLED_PX // size_px))
    # Pixel centres: crop pixel x covers dense pixels dense * x to dense * x + dense - 1.
    finer = dense * matrix + [[0, 0, (dense - 1) / 2]]
    side = dense * size_px
    sampled: Any = cv2.warpAffine(frame, finer, (side, side), flags=cv2.INTER_LINEAR)
    if dense > 1:
        sampled = cv2.resize(sampled, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return sampled


def map_points(points: ArrayLike, matrix: Matrix) -> Points:
    """Points [N, 2] of the frame in pixels of the crop."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def map_box(box: ArrayLike, matrix: Matrix) -> tuple[float, float, float, float]:
    """The upright box (x0, y0, x1, y1) around a box of the frame, in pixels of the crop."""
    x0, y0, x1, y1 = np.asarray(box, np.float64)
    corners = map_points([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], matrix)
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return left, top, right, bottom


def _zoom(matrix: Matrix) -> float:
    """Pixels of the crop for a pixel of the frame."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def _least_median(points: Points, target: Points) -> Matrix | None:
    found: Any = cv2.estimateAffinePartial2D(
        points.astype(np.float32), target.astype(np.float32), method=cv2.LMEDS
    )[0]
    return found


def _least_squares(points: Points, target: Points) -> Matrix:
    """A similarity of the plane is w = a z + b in complex numbers, and linear in a and b."""
    z, w = points @ [1, 1j], target @ [1, 1j]
    away = z - z.mean()
    a = (away.conj() @ w) / (away.conj() @ away).real
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
