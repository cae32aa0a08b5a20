"""Throughput of an evaluation against the bare forward of its detector, all in one run.

    python benchmarks/evaluation.py --checkpoint runs/RUN [--set data/demo/val.json] [--corruptions all]

Rows: the forward of training on batches that are ready on the device, with and without what autograd
keeps; what a scoring worker does with clean images (read, decode, cut, copy, resize, forward); and that
with one corruption, where each image is read once and scored twice. Every row scores the same images, all
are run in turn, in rounds, and the table has medians. A view is an image under one corruption or none.
Ratios are of time a view to the forward without gradients: of CPU time on a CPU, of wall time on a GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from dfdet.benchmark.measure import Times, interleaved
from dfdet.checkpoints.opened import Opened
from dfdet.data.index import open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import sequential_plan
from dfdet.errors import ConfigError, DfdetError
from dfdet.evaluation import options as evaluation
from dfdet.evaluation.corruptions.grid import Corruption
from dfdet.evaluation.request import open_request, select
from dfdet.evaluation.scorer import Scorer, Slice
from dfdet.model.detector import Detector

ONE_A_KIND = ("jpeg-40", "blur-11-1.5", "resize-112-lanczos", "noise-0.05")


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    checkpoint: Path
    """Checkpoint or run folder, or a published file."""
    set: Path = Path("data/demo/val.json")
    """Set to score."""
    corruptions: tuple[str, ...] = ONE_A_KIND
    """Corruptions: all, a kind as jpeg, or one as jpeg-40."""
    batch: int = 64
    """Samples in a batch (samples)."""
    batches: int = 4
    """Batches of a row, at most those of the set (batches)."""
    rounds: int = 5
    """Rounds of all rows (times)."""
    threads: int = 1
    """CPU threads of decoding, and of torch, as a worker's --cpus_per_worker (threads)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    views: int
    """Images that a call scores, each corruption counted."""
    step: Callable[[], None]


def rows_of(options: Options, device: torch.device) -> list[Row]:
    """All rows, the forward without gradients first.

    Raises:
        DfdetError: The checkpoint or set cannot be opened, or a corruption is none.
    """
    scorer, part = _worker(options, device)
    [model] = scorer.models
    ready = list(_ready(options, part, model, device))
    images = sum(map(len, ready))
    rows = [
        Row("forward", images, partial(_forward, model.detector, ready, grad=False)),
        Row("forward of training, with gradients kept", images, partial(_forward, model.detector, ready)),
        Row("evaluation, clean", images, partial(_scored, scorer, part, ())),
    ]
    for corruption in select(options.corruptions):
        step = partial(_scored, scorer, part, (corruption,))
        rows.append(Row(f"evaluation, clean and {corruption.name}", 2 * images, step))
    return rows


def _worker(options: Options, device: torch.device) -> tuple[Scorer, Slice]:
    """A worker of an evaluation, and the slice that it scores, of whole batches."""
    given = evaluation.Options(
        checkpoint=(str(options.checkpoint.absolute()),),
        test=(f"set={options.set.absolute()}",),
        batch=options.batch,
        mix_crops=True,
    )
    request = open_request(given)
    [index], first = request.tests.values(), request.slices[0]
    batches = min(options.batches, len(index) // options.batch, first.high)
    if not batches:
        raise ConfigError(f"--batch {options.batch}: the set has {len(index)} samples; give a smaller batch")
    return Scorer(request.work, str(device), options.threads), replace(first, high=batches)


def _ready(options: Options, part: Slice, model: Opened, device: torch.device) -> Iterator[Tensor]:
    """The slice's batches as the tower takes them, [b, 3, H, H] float32 on the device."""
    index = open_sets([options.set], mix_crops=True)
    loader = Loader(
        index,
        crop_scale=model.config.data.crop_scale,
        augment=None,
        seed=0,
        threads=options.threads,
        prefetch=1,
        on_damage="raise",
        max_damaged=0,
    )
    plan = sequential_plan(part.high * options.batch, options.batch)
    with loader:
        for batch in loader.batches(plan, epoch=0, rank=0, world=1):
            yield model.detector.to_input(batch.images.to(device), batch.sizes)


def _forward(detector: Detector, ready: Sequence[Tensor], grad: bool = True) -> None:
    with torch.set_grad_enabled(grad):
        for images in ready:
            detector.head(detector(images))


def _scored(scorer: Scorer, part: Slice, corruptions: tuple[Corruption, ...]) -> None:
    scorer.work = replace(scorer.work, corruptions=corruptions)
    scorer.score(replace(part, corrupted=bool(corruptions)))


def table(rows: Sequence[Row], times: Sequence[Times], device: torch.device) -> list[str]:
    """Lines of a Markdown table; ratios are to the first row."""
    lines = [
        "| row | views/s | wall ms a view | CPU ms a view | ratio to the forward |",
        "|---|" + "---:|" * 4,
    ]
    first = _seconds(times[0], device) / rows[0].views
    for row, found in zip(rows, times, strict=True):
        ratio = _seconds(found, device) / row.views / first
        wall, cpu = (1e3 * seconds / row.views for seconds in (found.wall_s, found.cpu_s))
        lines.append(f"| {row.name} | {1e3 / wall:.4g} | {wall:.3f} | {cpu:.3f} | {ratio:.3f} |")
    return lines


def _seconds(times: Times, device: torch.device) -> float:
    return times.cpu_s if device.type == "cpu" else times.wall_s


def main(options: Options) -> None:
    """Prints the table."""
    found = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    device = torch.device("cuda" if found else "cpu")
    torch.set_num_threads(options.threads)
    rows = rows_of(options, device)
    interleaved([row.step for row in rows], 1, device)  # the first calls allocate
    times = interleaved([row.step for row in rows], options.rounds, device)
    name = torch.cuda.get_device_name(device) if found else f"CPU, {options.threads} threads"
    print(
        f"{rows[0].views} images of {options.set} in batches of {options.batch}; {name}; medians of"
        f" {options.rounds} rounds in turn; load average {os.getloadavg()[0]:.1f}\n"
    )
    print("\n".join(table(rows, times, device)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, use_underscores=True))
    except DfdetError as error:
        sys.exit(f"error: {error}")
