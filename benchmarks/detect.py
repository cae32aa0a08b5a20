"""Face detection: frames a second, batched against one image at a time.

Two comparisons, each interleaved in one process, with medians over the rounds:

- an ONNX file (if given): frames one by one, as ``shards.detect`` does, against batches of 8;
- RetinaFace with ResNet-50 (random weights: the work is the same): ``shards.detect`` in batches on the
  device against ``predict_jsons`` of retinaface-pytorch, which takes one image at a time and pads it
  to a square, so frames that are not square cost it more.

    python benchmarks/detect.py [--onnx FILE] [--frames 4] [--rounds 3] [--threads 1]

Rates are per CPU second (all threads together), which other work on the machine disturbs less; on a GPU
per wall second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from shards.detect.onnx_file import OnnxDetector
from shards.detect.resnet50 import ResNet50Detector, make_network

SIZES = ((640, 640), (640, 360))
COMMON = {"size_px": 640, "threshold": 0.9, "nms": 0.4}
"""The threshold leaves few faces of random weights, as of real ones."""
BATCH = 8  # Of the ONNX network; ResNet-50 on a CPU takes all frames of a round as a batch.
Clock = Callable[[], float]


def pictures(count: int, width: int, height: int) -> list[np.ndarray]:
    """Noise: no face, as in the usual frame's many empty priors."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def compare(
    frames: int, rounds: int, sides: dict[str, Callable[[], object]], clock: Clock = time.process_time
) -> dict[str, float]:
    """Median frames a second of each side; the first round of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return {name: frames / statistics.median(times) for name, times in seconds.items()}


def report(what: str, rates: dict[str, float]) -> None:
    """Prints a row a side, with the ratio to the last one, which is the baseline."""
    baseline = list(rates.values())[-1]
    for name, rate in rates.items():
        print(f"{what:22}{name:30}{rate:9.2f} frames/s{rate / baseline:7.2f}x", flush=True)


def onnx(file: Path, frames: int, rounds: int, threads: int) -> None:
    """The network alone, since batching concerns nothing else, and our whole detector."""
    detector = OnnxDetector(file, **COMMON, threads=threads)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    frames = -(-frames // BATCH) * BATCH
    for width, height in SIZES:
        images = pictures(frames, width, height)
        blobs = np.zeros((frames, 3, -(-height // 32) * 32, width), np.float32)
        sides = {
            "whole detector, one by one": lambda images=images: detector(images),
            "network, one by one": lambda blobs=blobs: [session.run(None, {name: b[None]}) for b in blobs],
            f"network, batches of {BATCH}": lambda blobs=blobs: [
                session.run(None, {name: blobs[i : i + BATCH]}) for i in range(0, len(blobs), BATCH)
            ],
        }
        report(f"onnx {width}x{height}", compare(frames, rounds, sides))


def resnet50(device: str, frames: int, rounds: int) -> None:
    """Ours against ``predict_jsons``."""
    from retinaface.predict_single import Model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors, path = make_network().state_dict(), Path(folder) / "random.pth"
        torch.save(tensors, path)
        batches = {"default": None, f"batches of {frames}": frames} if device == "cpu" else {"default": None}
        detectors = {
            f"ours, {name}": ResNet50Detector(path, **COMMON, device=torch.device(device), batch=batch)  # type: ignore[arg-type]
            for name, batch in batches.items()
        }
        theirs = Model(max_size=COMMON["size_px"], device=device)
    theirs.load_state_dict(tensors)
    theirs.eval()
    for width, height in SIZES:
        images = pictures(frames, width, height)
        sides: dict[str, Callable[[], object]] = {
            name: lambda detector=detector, images=images: detector(images)
            for name, detector in detectors.items()
        }
        sides["predict_jsons"] = lambda images=images: [
            theirs.predict_jsons(image, confidence_threshold=COMMON["threshold"]) for image in images
        ]
        clock = time.perf_counter if device == "cuda" else time.process_time
        report(f"{device} {width}x{height}", compare(frames, rounds, sides, clock))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="RetinaFace-style ONNX file")
    parser.add_argument("--frames", type=int, default=4, help="frames a round on the CPU (frames)")
    parser.add_argument("--gpu-frames", type=int, default=128, help="frames a round on a GPU (frames)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (times)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.onnx:
        onnx(options.onnx, options.frames, options.rounds, options.threads)
    if torch.cuda.is_available():
        resnet50("cuda", options.gpu_frames, options.rounds)
    resnet50("cpu", options.frames, options.rounds)


if __name__ == "__main__":
    main()
