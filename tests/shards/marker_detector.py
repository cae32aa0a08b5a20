"""A RetinaFace-style ONNX file that finds magenta squares: the real decode path without real weights.

It has the input and outputs of RetinaFace MobileNet-0.25 (``input`` [N, 3, H, W], BGR minus
(104, 117, 127); ``loc``, ``conf``, ``landmarks``), so all of ``shards.detect`` runs on it as on a real
file, and ``draw_face`` tells where the truth lies.

Arithmetic, in pixels of the input:

- ``m = clip((min(B, R) - G - 64) / 128, 0, 1)`` is 1 on magenta, 0 on greys, and halfway at a
  blurred edge, so that compression and chroma subsampling keep its sum.
- At each cell of stride 16, over a window of 112 px: mass ``M = sum m``, centre ``c = sum m x / M``,
  side ``s = sqrt(M)``. Hence place and size are right to a fraction of a pixel, at any scale.
- A face is found (score .99, else .01) at the prior of side 64 if ``M > 64``, the centre lies within
  8.5 px of the prior on both axes, and the cell is as magenta as a square of that mass makes it
  (over .7 min(1, M / 1024)), which neither noise nor two halves of squares are. That is the nearest
  prior, or two, which decode to the same box, and suppression leaves one.
- The box is the square, the landmarks are ``c + OFFSETS * s``; the other priors never fire.

Limits, after shrinking: squares of 10 to 90 px, wholly in the frame, with a gap of at least 65 px
between any two on one axis, and no strong purple in the background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MAGENTA = (255, 0, 255)
OFFSETS = np.array([[-0.16, -0.14], [0.16, -0.14], [0.0, 0.04], [-0.13, 0.22], [0.13, 0.22]], np.float32)
"""Landmarks from the centre, in sides: eyes, nose, mouth corners, image-left first."""
SCORE = 0.99

_STRIDES, _STRIDE, _PRIOR, _WINDOW, _REACH = (8, 16, 32), 16, 64.0, 112, 8.5
_MEANS = (104.0, 117.0, 127.0)


def draw_face(frame: NDArray[np.uint8], x: int, y: int, size: int = 64) -> NDArray[np.float32]:
    """Draws a face centred at x, y into an RGB frame [H, W, 3]; gives its five landmarks [5, 2].

    The box of the face is ``x - size/2, y - size/2, x + size/2, y + size/2``; let ``size`` be even.
    """
    half = size // 2
    frame[max(0, y - half) : y + half, max(0, x - half) : x + half] = MAGENTA
    return np.array([x, y], np.float32) + OFFSETS * size


def write_marker_detector(path: Path) -> Path:
    """Writes the detector file; gives its path."""
    graph = _Graph()
    m = graph.magenta()
    columns, rows = (graph.coordinates(m, axis) for axis in (3, 2))
    sums = graph.window_sums(m, columns, rows)
    found, moved = graph.found(m, sums, columns, rows)
    side = graph.add("Sqrt", sums[0])
    log_side = graph.scaled(graph.add("Log", graph.scaled(side, 1 / _PRIOR)), 1 / 0.2)
    points = [
        graph.scaled(graph.add("Add", moved[axis], graph.scaled(side, float(offset[axis]))), 10 / _PRIOR)
        for offset in OFFSETS
        for axis in (0, 1)
    ]
    score = graph.add("Add", graph.scaled(found, 2 * SCORE - 1), graph.constant(1 - SCORE))
    background = graph.add("Sub", graph.constant(1.0), score)
    centre = [graph.scaled(value, 10 / _PRIOR) for value in moved]
    graph.output("loc", m, [*centre, log_side, log_side], [0.0] * 4)
    graph.output("conf", m, [background, score], [SCORE, 1 - SCORE])
    graph.output("landmarks", m, points, [0.0] * 10)
    onnx.save(graph.model(), str(path))
    return path


class _Graph:
    """Nodes of the file; maps are [N, 1, H, W]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: object) -> str:
        names = [name or f"v{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def constant(self, value: object, kind: type = np.float32) -> str:
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, kind)))

    def scaled(self, value: str, factor: float) -> str:
        return self.add("Mul", value, self.constant(factor))

    def magenta(self) -> str:
        self.add("Split", "input", outputs=3, axis=1)
        split = self.nodes[-1].output
        b, g, r = (
            self.add("Add", channel, self.constant(mean)) for channel, mean in zip(split, _MEANS, strict=True)
        )
        strength = self.add("Sub", self.add("Sub", self.add("Min", b, r), g), self.constant(64.0))
        return self.add("Clip", self.scaled(strength, 1 / 128), self.constant(0.0), self.constant(1.0))

    def coordinates(self, m: str, axis: int) -> str:
        """Middle of each pixel along an axis: .5, 1.5, ..."""
        ones = self.add("Add", self.scaled(m, 0.0), self.constant(1.0))
        count = self.add("CumSum", ones, self.constant(axis, np.int64))
        return self.add("Sub", count, self.constant(0.5))

    def pooled(self, value: str, stride: int = _STRIDE) -> str:
        """Mean of each cell."""
        return self.add("AveragePool", value, kernel_shape=[stride] * 2, strides=[stride] * 2)

    def summed(self, value: str) -> str:
        """Sum over the window around each cell, which is seven cells wide; outside of the input is 0."""
        cells = _WINDOW // _STRIDE
        shape = {"kernel_shape": [cells] * 2, "strides": [1, 1], "pads": [cells // 2] * 4}
        means = self.add("AveragePool", self.pooled(value), count_include_pad=1, **shape)
        return self.scaled(means, float(_WINDOW**2))

    def window_sums(self, m: str, columns: str, rows: str) -> tuple[str, str, str]:
        """Mass (at least 1), and sums of x and y times mass, of the window of each cell."""
        weighted = [m, self.add("Mul", m, columns), self.add("Mul", m, rows)]
        mass, x, y = map(self.summed, weighted)
        return self.add("Max", mass, self.constant(1.0)), x, y

    def found(self, m: str, sums: tuple[str, str, str], columns: str, rows: str) -> tuple[str, list[str]]:
        """Whether a cell finds a face (0 or 1), and how far its centre is from the prior's (x and y)."""
        moved = [
            self.add("Sub", self.add("Div", total, sums[0]), self.pooled(place))
            for total, place in zip(sums[1:], (columns, rows), strict=True)
        ]
        tests = [self.add("Less", self.add("Abs", value), self.constant(_REACH)) for value in moved]
        tests.append(self.add("Greater", sums[0], self.constant(64.0)))
        solid = self.add("Min", self.scaled(sums[0], 1 / 1024), self.constant(1.0))
        tests.append(self.add("Greater", self.pooled(m), self.scaled(solid, 0.7)))
        both = tests[0]
        for test in tests[1:]:
            both = self.add("And", both, test)
        return self.add("Cast", both, to=TensorProto.FLOAT), moved

    def output(self, name: str, m: str, maps: list[str], idle: list[float]) -> None:
        """Joins the three levels as [N, priors, k]: ``maps`` at the prior of side 64, ``idle`` elsewhere."""
        levels = []
        for stride in _STRIDES:
            level = self._idle(m, stride, idle if stride == _STRIDE else idle * 2)
            if stride == _STRIDE:
                level = self.add("Concat", *maps, level, axis=1)
            level = self.add("Transpose", level, perm=[0, 2, 3, 1])
            levels.append(self.add("Reshape", level, self.constant([0, -1, len(idle)], np.int64)))
        self.add("Concat", *levels, axis=1, name=name)
        shape = ["n", f"{name}_priors", len(idle)]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _idle(self, m: str, stride: int, values: list[float]) -> str:
        """The same values at each cell: a convolution that is all bias."""
        weights = self.constant(np.zeros((len(values), 1, 1, 1)))
        return self.add("Conv", self.pooled(m, stride), weights, self.constant(values))

    def model(self) -> onnx.ModelProto:
        shape = ["n", 3, "height", "width"]
        value = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "marker", [value], self.outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model
