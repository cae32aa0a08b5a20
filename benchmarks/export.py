"""Latency of a detector's formats, from uint8 crops to scores: eager, torch.export, ONNX Runtime.

All are in one process and run in turn, in rounds; the table has medians, of wall time and of the CPU time
of all threads (which does not count waiting for a core), and ratios to eager float32. int8 is the ONNX
file with weights of 8 bits; bfloat16 has the matrix products' weights stored so, as training has them.

    python benchmarks/export.py [--checkpoint C | --backbone ViT-B-32-quickgelu] [--batch 1 32] [--side 256]
                                [--rounds 9] [--threads 1]

One thread by default: the waiting threads of one runtime would spin on the others' cores.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dfdet.benchmark.measure import Times, interleaved
from dfdet.config import Config
from dfdet.export.graph import Deployed, deployed
from dfdet.export.onnx_file import OnnxScorer, export_onnx
from dfdet.export.program import export_program, load_program
from dfdet.model.detector import build_detector, store_frozen_in_bf16

CPU = torch.device("cpu")
Scores = Callable[[torch.Tensor], object]


def random_model(backbone: str) -> Deployed:
    """A detector of random weights: the work is that of pretrained ones."""
    config = Config().replace(
        {
            "model.backbone": backbone,
            "model.pretrained": None,
            "model.image_size": 96 if backbone == "tiny" else 224,
            "engine.precision": "fp32",
        }
    )
    detector = build_detector(config)
    return Deployed(detector.tower, detector.head, detector.preprocess)


def in_bfloat16(model: Deployed) -> Deployed:
    """The detector with products in bfloat16 and their weights stored so."""
    tower = copy.deepcopy(model.tower)
    store_frozen_in_bf16(tower)
    other = Deployed(tower, model.head, model.preprocess, pillow=model.resize.pillow)
    return other.computing_in(torch.bfloat16)


def formats(model: Deployed, folder: Path, threads: int) -> dict[str, Scores]:
    """All sides by name, the one that others are compared with first."""
    export_program(model, folder / "model.pt2")
    for precision in ("float32", "int8"):
        export_onnx(model, folder / f"{precision}.onnx", precision=precision)
    onnx = {name: OnnxScorer(folder / f"{name}.onnx", threads) for name in ("float32", "int8")}
    return {
        "eager float32": torch.no_grad()(model),
        "eager bfloat16": torch.no_grad()(in_bfloat16(model)),
        "torch.export float32": load_program(folder / "model.pt2"),
        "ONNX Runtime float32": lambda crops: onnx["float32"](crops.numpy()),
        "ONNX Runtime int8": lambda crops: onnx["int8"](crops.numpy()),
    }


def measure(sides: dict[str, Scores], batch: int, side: int, rounds: int) -> list[Times]:
    """Times of each format on the same crops; the first round of each is not counted."""
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8))
    steps: list[Callable[[], None]] = [partial(_run, score, crops) for score in sides.values()]
    interleaved(steps, 1, CPU)
    return interleaved(steps, rounds, CPU)


def _run(score: Scores, crops: torch.Tensor) -> None:
    score(crops)


def table(names: Sequence[str], batches: Sequence[int], found: Sequence[Sequence[Times]]) -> list[str]:
    """Lines of a Markdown table; ratios are to the first row."""
    heads = [f"batch {batch}: ms | to eager | CPU ms | to eager" for batch in batches]
    lines = [f"| format | {' | '.join(heads)} |", "|---|" + "---:|" * 4 * len(batches)]
    for row, name in enumerate(names):
        cells = [
            f"{times[row].wall_s * 1e3:.1f} | {times[row].wall_s / times[0].wall_s:.2f}"
            f" | {times[row].cpu_s * 1e3:.1f} | {times[row].cpu_s / times[0].cpu_s:.2f}"
            for times in found
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="run folder, checkpoint or published file")
    parser.add_argument("--backbone", default="ViT-B-32-quickgelu", help="with random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="crops in a call")
    parser.add_argument("--side", type=int, default=256, help="of a crop (pixels)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of each runtime")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = deployed(options.checkpoint) if options.checkpoint else random_model(options.backbone)
    with TemporaryDirectory() as folder:
        sides = formats(model, Path(folder), options.threads)
        found = [measure(sides, batch, options.side, options.rounds) for batch in options.batch]
    print(
        f"{options.checkpoint or options.backbone}, crops of {options.side} px, {options.threads} threads,"
        f" medians of {options.rounds} rounds in turn\n"
    )
    print("\n".join(table(list(sides), options.batch, found)))


if __name__ == "__main__":
    main()
