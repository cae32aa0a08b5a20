"""What a face detector gives, and what it is asked through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dfdet.errors import DfdetError

Image = NDArray[np.uint8]
"""RGB frame [H, W, 3], upright."""


class Faces(NamedTuple):
    """The N faces of a frame, best score first; N may be 0. Pixels of the frame, not rounded."""

    boxes: NDArray[np.float32]
    """x0, y0, x1, y1, [N, 4]."""
    scores: NDArray[np.float32]
    """Confidence (0 to 1), [N]."""
    landmarks: NDArray[np.float32]
    """Image-left eye, image-right eye, nose, image-left and image-right mouth corner, [N, 5, 2]."""


class DetectorError(DfdetError):
    """A detector that failed, not for the frame's sake: nothing is recorded of the video."""


class Detector(Protocol):
    """Finds faces; equal frames give equal faces, whatever else is in the call."""

    name: str
    """Kind and version, for the crop recipe: ``retinaface-onnx``, ``retinaface-resnet50 0.0.7``."""
    weights_sha256: str
    """Checksum of the file of weights."""

    def __call__(self, frames: Sequence[Image]) -> list[Faces]:
        """Faces of each frame; frames may differ in size."""
        ...
