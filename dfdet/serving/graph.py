"""An exported graph, ready to score: ONNX Runtime on the CPU, torch on CUDA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfdet.data.decode import Pixels
from dfdet.errors import DfdetError, WeightsError
from dfdet.serving.bundle import Bundle, Precision

Floats = NDArray[np.float32]
PROBE_PX = 48


@dataclass(frozen=True)
class Scored:
    """What the model says of a crop."""

    score: float
    """Fake probability (0 to 1), before any temperature."""
    logit: float
    """Fake minus real logit."""
    batch: int = 0
    """Crops of the batch that it led; 0 for those that it did not lead."""


class Graph(ABC):
    """Crops of equal sides to scores; each call is one forward pass."""

    @abstractmethod
    def run(self, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Scores and logits ``[n]`` of crops ``[n, s, s, 3]``, uint8 RGB."""

    def __call__(self, crops: Sequence[Pixels]) -> list[Scored]:
        """Scores in the order of the crops; those of one side go through the model together.

        Raises:
            DfdetError: A score is not finite.
        """
        found: dict[int, Scored] = {}
        for rows in _by_side(crops):
            scores, logits = self.run(np.stack([crops[row] for row in rows]))
            if not (np.isfinite(scores).all() and np.isfinite(logits).all()):
                raise DfdetError("the model's scores are NaN or infinite")
            for place, row in enumerate(rows):
                size = len(rows) if place == 0 else 0
                found[row] = Scored(float(scores[place]), float(logits[place]), size)
        return [found[row] for row in range(len(crops))]


class OnnxGraph(Graph):
    """A graph in ONNX Runtime on the CPU.

    Raises:
        WeightsError: The file is no graph of a detector.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # What goes wrong comes as an exception.
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base but Exception.
            raise WeightsError(f"{path}: cannot be opened ({_line(error)}); export it again") from error

    def run(self, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """As :meth:`Graph.run`."""
        scores, logits = self._session.run(["score", "logit"], {"crops": crops})
        return np.asarray(scores), np.asarray(logits)


class TorchGraph(Graph):
    """A program of torch.export.

    Raises:
        WeightsError: The file is no such program.
    """

    def __init__(self, path: Path, device: str, threads: int) -> None:
        import torch

        from dfdet.export.program import load_program

        torch.set_num_threads(threads)
        try:
            self._program = load_program(path, device)
        except Exception as error:  # torch's errors here have no base but Exception.
            raise WeightsError(f"{path}: cannot be opened ({_line(error)}); export it again") from error
        self._device = device

    def run(self, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """As :meth:`Graph.run`."""
        import torch

        with torch.inference_mode():
            scores, logits = self._program(torch.from_numpy(crops).to(self._device))
        return scores.cpu().numpy(), logits.cpu().numpy()


def open_graph(bundle: Bundle, precision: Precision, device: str, threads: int) -> Graph:
    """The graph of a bundle, proved to be the file that export wrote and to score a crop.

    Raises:
        ConfigError: The bundle has none of this precision.
        WeightsError: The file is another, or is no graph of a detector.
    """
    path = bundle.check(bundle.graph(precision, device))
    graph = TorchGraph(path, device, threads) if device == "cuda" else OnnxGraph(path, threads)
    try:
        graph([probe()])
    except Exception as error:  # As above.
        raise WeightsError(f"{path}: does not score a crop ({_line(error)}); export it again") from error
    return graph


def probe() -> Pixels:
    """A crop to try a graph with: a ramp of colours."""
    ramp = np.arange(PROBE_PX * PROBE_PX * 3, dtype=np.uint32) * 7 % 256
    return ramp.astype(np.uint8).reshape(PROBE_PX, PROBE_PX, 3)


def _by_side(crops: Sequence[Pixels]) -> list[list[int]]:
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, crop in enumerate(crops):
        rows.setdefault(crop.shape, []).append(row)
    return list(rows.values())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
