"""What a face looks like, roughly: enough to tell that after a cut another one is in its place."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.detect.faces import Image
from shards.detect.geometry import Floats

SIDE_PX, BINS = 24, 12


def appearance(frame: Image, boxes: Floats) -> Floats:
    """Colours within each box: a histogram over 12 x 12 x 12 cells of CIELAB that sums to 1.

    Args:
        frame: RGB [H, W, 3].
        boxes: x0, y0, x1, y1 in its pixels, [N, 4].

    Returns:
        [N, 1728]; all zeros for a box that lies outside of the frame.
    """
    limits = np.array([frame.shape[1], frame.shape[0]] * 2)
    corners = boxes.round().clip(0, limits).astype(int)
    found = np.zeros((len(boxes), BINS**3), np.float32)
    for row, (x0, y0, x1, y1) in zip(found, corners, strict=True):
        if x1 > x0 and y1 > y0:
            row[:] = _histogram(frame[y0:y1, x0:x1])
    return found


def likeness(first: Floats, second: Floats) -> Floats:
    """Shared part of histograms (0 to 1), broadcast: [..., K] and [..., K] -> [...].

    Over 12 clips of one person, and a clip with several cuts (32 frames each): at least .74 for one
    person at two looks up to a second apart, at most .49 across a cut.
    """
    return np.minimum(first, second).sum(-1)


def _histogram(image: NDArray[np.uint8]) -> Floats:
    small = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    counts = cv2.calcHist([lab], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return np.asarray(counts.ravel() / SIDE_PX**2, np.float32)
