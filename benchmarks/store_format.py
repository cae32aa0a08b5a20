"""Does the storage format of crops matter? One detector a format and seed, scored on every format.

    python benchmarks/store_format.py --videos DIR --detector retinaface.onnx --tower vits14.safetensors

Aligned crops of real videos (lossless WebP, wide) and self-blended fakes of them are stored as PNG,
lossless WebP, JPEG 95 4:4:4 and JPEG 95 4:2:0: the same pixels, so PNG must equal WebP, which is checked
and not trained twice. Seed k leaves every k-th of ``--seeds`` parts of the videos out for its test, so
that each video is tested once. The table has the mean frame AUROC of the seeds and 95 % intervals by
bootstrap over the test videos, for the difference to lossless from the same draws.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfdet.checkpoints.resume import restore
from dfdet.config import Config
from dfdet.context import LocalContext
from dfdet.data.index import open_sets
from dfdet.evaluation import metrics
from dfdet.evaluation.evaluate import score_index
from dfdet.model.detector import build_detector
from dfdet.recipes import gend
from dfdet.runs.runfolder import RunFolder
from dfdet.train import train
from shards.media.decode import decode_rgb
from shards.sets.read import SetReader
from shards.sets.write import ShardWriter

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("png", {"format": "PNG"}),
    "webp": ("webp", {"format": "WEBP", "lossless": True, "method": 0}),
    "jpg444": ("jpg", {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"}),
    "jpg420": ("jpg", {"format": "JPEG", "quality": 95, "subsampling": "4:2:0"}),
}
TRAINED = ("webp", "jpg444", "jpg420")
DRAWS = 2000


@dataclass(frozen=True)
class Scored:
    """Frames of the test videos of a seed."""

    label: NDArray[np.int8]
    """[n]"""
    video: NDArray[np.int64]
    """Which of the seed's test videos, [n]."""
    score: NDArray[np.float32]
    """Fake probability, [n]."""


# ---------------------------------------------------------------- the sets


def sharded(options: argparse.Namespace, out: Path) -> Path:
    """Crops of the videos and self-blended fakes: the manifest of one lossless set."""
    files = sorted(path.name for path in options.videos.glob("*.mp4"))
    with (out / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["file", "label", "split"], *([name, "real", "train"] for name in files)]
        )
    shards = [sys.executable, "-m", "shards"]
    videos = ["videos", "--dataset", "own", "--root", options.videos, "--labels", out / "labels.csv"]
    detector = ["--detector", "onnx", "--weights", options.detector, "--workers", options.workers]
    frames = ["--frames", options.frames, "--selection", "track", "--out", out]
    blend = ["blend", out / "own-train.json", "--out", out, "--workers", options.workers]
    for command in ([*videos, *detector, *frames], blend):
        subprocess.run([*shards, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return out / "own-train-sbi.json"


def stored(manifest: Path, out: Path) -> tuple[list[str], dict[str, float]]:
    """The set once more in each format, a set a video, as ``<out>/<format>/<group>.json``.

    Returns:
        Names of the videos that have faces, and kilobytes of an image by format.
    """
    kilobytes = {}
    with SetReader(manifest) as reader:
        groups: dict[str, list] = {}
        for row in reader.rows:
            groups.setdefault(str(row.group).rpartition("/")[2], []).append(row)
        for name, (ext, saving) in FORMATS.items():
            sizes = []
            for group, rows in groups.items():
                items = []
                for row in rows:
                    pixels = decode_rgb(reader.image(row))
                    data = encoded(pixels, saving)
                    if ext != "jpg":
                        assert (decode_rgb(data) == pixels).all(), f"{row.key}: {name} is not lossless"
                    sizes.append(len(data))
                    items.append((reader.sample(row), ext, data, row.width, row.height))
                crop, dataset = reader.manifest.crop, reader.manifest.dataset
                with ShardWriter(out / name, group, dataset=dataset, split="train", crop=crop) as writer:
                    writer.add_group(items)
            kilobytes[name] = float(np.mean(sizes)) / 1000
    return sorted(groups), kilobytes


def encoded(pixels: NDArray[np.uint8], saving: dict[str, object]) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **saving)
    return buffer.getvalue()


# ---------------------------------------------------------------- one detector


def config_of(options: argparse.Namespace, sets: Path, kind: str, seed: int, videos: list[str]) -> Config:
    """The recipe `gend`, small: all but the test videos of the seed, the last epoch taken."""
    known = [name for place, name in enumerate(videos) if place % options.seeds != seed]
    return gend().replace(
        {
            "run.seed": seed,
            "data.train": tuple(str(sets / kind / f"{name}.json") for name in known),
            "data.sampling": "pair",
            "data.global_batch": 16,
            "data.augment.strength": options.augment,
            "data.threads": 1,
            "model.backbone": "timm/vit_small_patch14_dinov2.lvd142m",
            "model.pretrained": str(options.tower),
            "model.image_size": options.image_size,
            "optim.lr": options.lr,
            "optim.head_lr_factor": 20.0,
            "optim.epochs": options.epochs,
            "optim.schedule": "cosine",
            "optim.warmup_epochs": 0.5,
            "engine.precision": "fp32",
        }
    )


def job(
    options: argparse.Namespace, sets: Path, kind: str, seed: int, videos: list[str]
) -> dict[str, Scored]:
    """Trains on a format and scores the seed's test videos in every format that is asked for."""
    config = config_of(options, sets, kind, seed, videos)
    tested = [name for name in videos if name not in {Path(path).stem for path in config.data.train}]
    with tempfile.TemporaryDirectory() as storage:
        folder, _ = RunFolder.claim(Path(storage), "run", config)
        try:
            context = LocalContext(folder)
            result = train(config, context)
            detector = build_detector(config, device=context.device)
            restore(detector, Path(result["best_checkpoint"]))
        finally:
            folder.release()
        found = {}
        for other in TRAINED if kind == "webp" else (kind,):
            index = open_sets([sets / other / f"{name}.json" for name in tested])
            scores = score_index(detector, detector, index, config, context)
            video = index.group[scores.ids].astype(np.int64)
            found[other] = Scored(scores.labels, video, scores.scores)
    return found


# ---------------------------------------------------------------- figures


def drawn_auroc(seeds: list[Scored], draws: list[NDArray[np.int64]]) -> float:
    """Mean over seeds of the frame AUROC of drawn test videos."""
    values = []
    for scored, videos in zip(seeds, draws, strict=True):
        rows = np.concatenate([np.flatnonzero(scored.video == video) for video in videos])
        values.append(metrics.auroc(scored.label[rows], scored.score[rows]))
    return float(np.mean(values))


def figures(found: dict[tuple[str, str], list[Scored]]) -> dict[tuple[str, str], NDArray[np.float64]]:
    """AUROC of each (trained, tested) pair of formats: the point, then the bootstrap's, [1 + DRAWS]."""
    generator = np.random.default_rng(0)
    folds = [np.unique(scored.video) for scored in found["webp", "webp"]]
    draws = [folds] + [[generator.choice(fold, len(fold)) for fold in folds] for _ in range(DRAWS)]
    return {key: np.array([drawn_auroc(seeds, draw) for draw in draws]) for key, seeds in found.items()}


def interval(values: NDArray[np.float64]) -> str:
    """A point and its 95 % interval."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def report(found: dict[tuple[str, str], list[Scored]], kilobytes: dict[str, float]) -> None:
    """Prints the table in Markdown."""
    table = figures(found)
    base = table["webp", "webp"]
    print("| trained on | tested on | KB an image | frame AUROC | by seed | difference to lossless |")
    print("|---|---|---|---|---|---|")
    for (kind, other), values in table.items():
        every = ", ".join(f"{drawn_auroc([one], [np.unique(one.video)]):.3f}" for one in found[kind, other])
        difference = "" if (kind, other) == ("webp", "webp") else interval(values - base)
        print(f"| {kind} | {other} | {kilobytes[other]:.1f} | {interval(values)} | {every} | {difference} |")
    print(f"\nPNG ({kilobytes['png']:.1f} KB an image) gave the pixels of lossless WebP in every image.")


def main() -> None:
    """Makes the sets, trains, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of real videos (.mp4)")
    parser.add_argument("--detector", type=Path, required=True, help="RetinaFace in ONNX")
    parser.add_argument("--tower", type=Path, required=True, help="DINOv2 ViT-S/14 (safetensors)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a video (frames)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training videos (epochs)")
    parser.add_argument("--seeds", type=int, default=3, help="detectors a format, and parts of the videos")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (per step)")
    parser.add_argument("--image_size", type=int, default=112, help="side of the model's input (pixels)")
    parser.add_argument("--augment", type=float, default=0.0, help="strength of the augmentation (factor)")
    parser.add_argument("--workers", type=int, default=2, help="processes (processes)")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sets = Path(folder)
        videos, kilobytes = stored(sharded(options, sets), sets)
        print(f"{len(videos)} videos of {options.frames} frames and as many fakes, stored after"
              f" {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
        jobs = [(kind, seed) for seed in range(options.seeds) for kind in TRAINED]
        found: dict[tuple[str, str], list[Scored]] = {}
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            runs = [pool.submit(job, options, sets, kind, seed, videos) for kind, seed in jobs]
            for (kind, seed), run in zip(jobs, runs, strict=True):
                for other, scored in run.result().items():
                    found.setdefault((kind, other), []).append(scored)
                    value = metrics.auroc(scored.label, scored.score)
                    print(f"seed {seed}: trained on {kind}, tested on {other}: {value:.3f}", flush=True)
        report(found, kilobytes)
        print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
