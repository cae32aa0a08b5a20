"""One training step against the plain ones and against the matrix products alone, in one run.

    python -m dfdet.benchmark step --backbone ViT-L-14-quickgelu --batch 2 [--device cuda] [--compile]

Rows: ours; transformers' CLIP with unfrozen LayerNorms and open_clip's own tower, each under bf16
autocast and in float32; the products of our step alone. All have the same weights and see the same
random images, once each a round, and the table has medians. LN-tuning throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from dfdet.benchmark.floor import replay
from dfdet.benchmark.measure import Outcome, Saved, Times, interleaved, outcome, peak_mib, saved_memory
from dfdet.benchmark.rivals import (
    Rival,
    hugging_face_tower,
    ours,
    pooled,
    public_step,
    stock_tower,
    weights_of,
)
from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.model.compiled import compile_blocks, or_eager
from dfdet.model.detector import Detector, Precision, build_detector, store_frozen_in_bf16
from dfdet.model.openclip import OpenClipTower
from dfdet.training.flops import Peak, peak, trace

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
ERROR_IMAGES = 4
"""Images that the exactness is measured on (images)."""


@dataclass(frozen=True)
class StepOptions:
    """Options of the ``step`` benchmark."""

    backbone: str = "ViT-L-14-quickgelu"
    """Tower, as model.backbone."""
    pretrained: str | None = None
    """Weights, as model.pretrained; None: random ones, at equal speed and memory."""
    batch: int = 2
    """Images in a step (images)."""
    image_size: int = 224
    """Side of an image (pixels)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes CUDA where there is one."""
    precision: Precision = "bf16"
    """Of our step and of the floor."""
    repeats: int = 7
    """Rounds (times)."""
    compile: bool = False
    """torch.compile of our blocks."""
    checkpointing: bool = False
    """Gradient checkpointing of our tower."""
    threads: int | None = None
    """Threads on a CPU; None: torch's own choice. One thread gives the steadiest CPU time (threads)."""
    stock: bool = True
    """Rows of open_clip's own tower, on a CPU under autocast some 10 to 25 times slower than the rest."""
    errors: bool = True
    """Errors against float64, which need 8 bytes a parameter and a double-precision step."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    precision: Precision
    times: Times
    saved: Saved | None = None
    peak_mib: float | None = None
    errors: tuple[float, float] | None = None
    """Relative errors of features and of the norms' gradients."""


def run(options: StepOptions) -> int:
    """Measures and prints; exit code 0."""
    device = _device(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    detector, contenders, notes, exact = _contenders(options, device)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, device=device)
    labels = torch.arange(options.batch, device=device) % 2
    products = trace(detector, options.batch)
    floor = replay(products, torch.bfloat16 if options.precision == "bf16" else torch.float32, device)
    notes += _compile(options, contenders[0], images, labels)

    rows = measure(contenders, floor, images, labels, options, device, exact)
    flops = products.flops / options.batch
    peaks: dict[Precision, Peak] = {p: peak(device, p) for p in {row.precision for row in rows}}
    print(
        "\n".join(
            [*_heading(options, device, flops, peaks), *table(rows, options.batch, flops, peaks, device)]
        )
    )
    print("\n".join(notes))
    return 0


def _device(options: StepOptions) -> torch.device:
    found = torch.cuda.is_available()
    if options.device == "cuda" and not found:
        raise ConfigError("--device cuda: torch sees no CUDA device; set --device cpu")
    return torch.device("cuda" if found and options.device != "cpu" else "cpu")


def _contenders(
    options: StepOptions, device: torch.device
) -> tuple[Detector, list[Rival], list[str], Callable[[Tensor], Outcome] | None]:
    """Our detector, all steps (ours first), what to say of those missing, and the exact outcome."""
    config = _config(options)
    detector = build_detector(config, device=device)
    tower = detector.tower
    weights = weights_of(tower) if isinstance(tower, OpenClipTower) else {}
    if options.precision == "bf16":  # only now: the others start from the float32 weights
        store_frozen_in_bf16(tower)
        detector.precision = "bf16"
    steps = [ours(detector, config)]
    if not (isinstance(tower, OpenClipTower) and isinstance(tower.visual, VisionTransformer)):
        return detector, steps, [f"no other steps: {options.backbone} is no CLIP ViT of open_clip's"], None
    dim, notes = tower.output_dim, []
    stock = stock_tower(config.model, weights, device)
    try:
        theirs = hugging_face_tower(stock, weights, device)
        steps += [public_step("transformers", p, theirs, pooled(theirs), dim, device) for p in PRECISIONS]
    except ImportError as error:
        notes.append(f"transformers: rows missing, it is not installed ({error}); pip install transformers")
    if options.stock:
        steps += [public_step("open_clip", p, stock, stock, dim, device) for p in PRECISIONS]
    return detector, steps, notes, partial(_exact, stock) if options.errors else None


def _config(options: StepOptions) -> Config:
    return Config().replace(
        {
            "model.backbone": options.backbone,
            "model.pretrained": options.pretrained,
            "model.image_size": options.image_size,
            "engine.precision": "fp32",
            "engine.gradient_checkpointing": options.checkpointing,
        }
    )


def _exact(stock: torch.nn.Module, images: Tensor) -> Outcome:
    double = copy.deepcopy(stock).double()
    return outcome(double, [p for p in double.parameters() if p.requires_grad], images.double())


def _compile(options: StepOptions, step: Rival, images: Tensor, labels: Tensor) -> list[str]:
    """Compiles our tower if asked; what to say where that fails."""
    if not options.compile:
        return []
    compile_blocks(step.tower)
    with or_eager(step.tower) as reasons:
        step.loss(step.forward(images), labels).backward()
    step.optimizer.zero_grad(set_to_none=True)
    return [f"dfdet: not compiled ({reason})" for reason in reasons]


def measure(
    contenders: list[Rival],
    floor: Callable[[], None],
    images: Tensor,
    labels: Tensor,
    options: StepOptions,
    device: torch.device,
    exact: Callable[[Tensor], Outcome] | None = None,
) -> list[Row]:
    """Exactness first, since steps change the weights; then memory; then time. The floor comes last."""
    few = images.new_empty(ERROR_IMAGES, *images.shape[1:]).normal_()
    reference = exact(few) if exact else None
    errors = [outcome(c.forward, c.norms, few).error(reference) if reference else None for c in contenders]
    saved = [saved_memory(c.forward, c.tower.parameters(), few[:2], options.batch) for c in contenders]
    steps: list[Callable[[], None]] = [partial(c.step, images, labels) for c in contenders]
    peaks = [peak_mib(step, device) for step in steps]
    interleaved([*steps, floor], 1, device)  # the first calls allocate
    times = interleaved([*steps, floor], options.repeats, device)
    rows = [
        Row(c.name, c.precision, times[i], saved[i], peaks[i], errors[i]) for i, c in enumerate(contenders)
    ]
    return [*rows, Row("products alone", options.precision, times[-1])]


def _heading(
    options: StepOptions, device: torch.device, flops: float, peaks: dict[Precision, Peak]
) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    extras = ", compiled" * options.compile + ", checkpointing" * options.checkpointing
    known = "; ".join(f"{p} {v.flops_per_s / 1e12:.3g} TFLOP/s, {v.origin}" for p, v in sorted(peaks.items()))
    return [
        f"{options.backbone} at {options.image_size} px, batch {options.batch}, LN-tuning{extras};"
        f" {name}{threads}; medians of {options.repeats} rounds in turn",
        f"{flops / 1e9:.4g} GFLOP an image and step; peak {known}",
    ]


def table(
    rows: list[Row], batch: int, flops: float, peaks: dict[Precision, Peak], device: torch.device
) -> list[str]:
    """Lines of the table; ratios are to the first row, by CPU time on a CPU and by wall time on a GPU."""
    on_cpu = device.type == "cpu"
    heading = ["step", "type", "wall ms", "CPU ms", "ratio", "images/s", "MFU %", "saved MiB", "copies MiB"]
    heading += ["peak MiB", "feature error", "LN gradient error"]

    def seconds(row: Row) -> float:
        return row.times.cpu_s if on_cpu else row.times.wall_s

    cells = [heading]
    for row in rows:
        rate = batch / row.times.wall_s
        cells.append(
            [
                row.name,
                row.precision,
                f"{row.times.wall_s * 1e3:.1f}",
                f"{row.times.cpu_s * 1e3:.1f}",
                f"{seconds(row) / seconds(rows[0]):.3f}",
                f"{rate:.4g}",
                f"{100 * rate * flops / peaks[row.precision].flops_per_s:.1f}",
                f"{row.saved.activations:.1f}" if row.saved else "-",
                f"{row.saved.copies:.1f}" if row.saved else "-",
                f"{row.peak_mib:.0f}" if row.peak_mib is not None else "-",
                *([f"{error:.2e}" for error in row.errors] if row.errors else ["-", "-"]),
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
