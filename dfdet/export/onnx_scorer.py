"""Scores of crops by an ONNX file, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class OnnxScorer:
    """A graph that ONNX Runtime has loaded; calls from several threads are safe.

    Args:
        path: The ``.onnx`` file; data beside it is found by itself.
        threads: Threads of one call; None: one for each core.
        providers: ONNX Runtime's execution providers, the preferred first; None: the CPU.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, providers: Sequence[str] | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=list(providers or ("CPUExecutionProvider",))
        )

    def __call__(self, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Fake probability and fake minus real logit ``[N]``, of crops ``[N, H, W, 3]`` uint8 RGB."""
        score, logit = self.session.run(["score", "logit"], {"crops": crops})
        return score, logit
