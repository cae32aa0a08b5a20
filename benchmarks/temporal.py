"""Whether the temporal head wins: video AUROC by clips against the mean of frames, over seeds.

    python benchmarks/temporal.py [--seeds 0 1 2] [--jobs 2]
    python benchmarks/temporal.py --train A.json --val B.json --test cdfv2=C.json --clip_frames 8

Each seed trains twice without Ray, with the temporal head and without it, on the same batches. The first
run's best checkpoint is scored both ways; a difference is paired by seed, with Student's interval. The
tables are Markdown. Without sets it is on the demo's, whose fakes lie within a frame: nothing is to be won.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro

from dfdet.config import Config
from dfdet.context import LocalContext
from dfdet.evaluation.seeds import t_interval
from dfdet.recipes import RECIPES
from dfdet.runs.runfolder import RunFolder
from dfdet.train import train

PLAIN, MEAN, TEMPORAL = "no temporal head, mean", "temporal head, mean", "temporal head, clips"
Figures = dict[str, float]
"""Video AUROC by ``<row>/<set>``."""


def run(config: Config) -> dict[str, Any]:
    """Metrics of the best checkpoint of one training run in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as storage:
        folder, _ = RunFolder.claim(Path(storage), "run", config)
        try:
            return dict(train(config, LocalContext(folder))["metrics"])
        finally:
            folder.release()


def job(config: Config) -> Figures:
    """The three rows of a seed."""
    off = {"model.temporal": False, "loss.consistency": 0.0}
    with_head, without = run(config), run(config.replace(off))
    found: Figures = {}
    for name in (entry.partition("=")[0] for entry in config.data.test):
        auroc = f"test/{name}/video/auroc"
        found |= {f"{PLAIN}/{name}": without[auroc], f"{MEAN}/{name}": with_head[auroc]}
        found[f"{TEMPORAL}/{name}"] = with_head[f"{auroc}_temporal"]
    return found


def said(values: list[float], *, signed: bool = False) -> str:
    """Mean and interval."""
    sign = "+" if signed else ""
    interval = t_interval(values)
    mean = f"{fmean(values):{sign}.4f}"
    return mean if interval is None else f"{mean} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def show(found: list[Figures], sets: list[str]) -> None:
    """Prints both tables."""
    head = " | ".join(sets)
    rule = "|---|" + "---|" * len(sets)
    print(f"\n| video AUROC, {len(found)} seeds | {head} |\n{rule}")
    for row in (PLAIN, MEAN, TEMPORAL):
        cells = (said([figures[f"{row}/{name}"] for figures in found]) for name in sets)
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"\n| difference, paired by seed | {head} |\n{rule}")
    for base in (MEAN, PLAIN):
        gains = (
            said(
                [figures[f"{TEMPORAL}/{name}"] - figures[f"{base}/{name}"] for figures in found], signed=True
            )
            for name in sets
        )
        print(f"| {TEMPORAL} - {base} | {' | '.join(gains)} |")


def main(
    train: tuple[str, ...] = (),
    val: str | None = None,
    test: tuple[str, ...] = (),
    recipe: str = "temporal",
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int | None = None,
    clip_frames: int | None = None,
    global_batch: int | None = None,
    lr: float | None = None,
    consistency: float | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    image_size: int | None = None,
    jobs: int = 1,
) -> None:
    """Prints the comparison.

    Args:
        train: Training sets; none: the demo's.
        val: Set that chooses the best checkpoint.
        test: Sets that are told of, each NAME=SET.json.
        recipe: What is trained, made temporal if it is not.
        seeds: Of the runs.
        epochs: Instead of the recipe's.
        clip_frames: Instead of the recipe's (frames).
        global_batch: Instead of the recipe's (samples).
        lr: Instead of the recipe's.
        consistency: Weight of the consistency term, instead of the recipe's.
        backbone: Tower, instead of the recipe's.
        pretrained: Its weights.
        image_size: Side of its input (pixels).
        jobs: Seeds at a time.
    """
    given = {
        "data.train": train or None,
        "data.val": (f"val={val}",) if val else None,
        "data.test": test or None,
        "data.clip_frames": clip_frames,
        "data.global_batch": global_batch,
        "optim.epochs": epochs,
        "optim.lr": lr,
        "loss.consistency": consistency,
        "model.backbone": backbone,
        "model.pretrained": pretrained,
        "model.image_size": image_size,
    }
    values: dict[str, Any] = {"run.workers": 1, "model.temporal": True, "data.sampling": "clip"}
    config = RECIPES[recipe]().replace(values | {k: v for k, v in given.items() if v is not None})
    sets = [entry.partition("=")[0] for entry in config.data.test]
    found = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        configs = [config.replace({"run.seed": seed}) for seed in seeds]
        for seed, figures in zip(seeds, pool.map(job, configs), strict=True):
            found.append(figures)
            print(f"seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
    show(found, sets)


if __name__ == "__main__":
    tyro.cli(main)
