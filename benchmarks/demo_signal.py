"""What tells the demo's fakes apart: LN-tuning against a linear probe and against trivial statistics.

    python benchmarks/demo_signal.py [--shards data/demo] [--seeds 0 1 2]

Each seed trains the `demo` recipe twice on one process without Ray, LN-tuned and as a linear probe on
the same untuned tower (at the better of three learning rates by validation AP), and prints video AUROC
on the validation set and on the set of the held-out method. The third row is a logistic regression on
statistics of pixels and compression, which must not do what the detector does.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import tyro
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfdet.config import Config
from dfdet.context import LocalContext
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import sequential_plan
from dfdet.evaluation import metrics
from dfdet.recipes import demo
from dfdet.runs.runfolder import RunFolder
from dfdet.train import train
from shards.demo import build

PROBE_RATES = (0.02, 0.1, 0.5)
Figures = tuple[float, float]
"""Video AUROC on validation and on the held-out method."""


def run(config: Config) -> tuple[float, Figures]:
    """Validation AP, and the figures, of one training run in this process."""
    with tempfile.TemporaryDirectory() as storage:
        folder, _ = RunFolder.claim(Path(storage), "run", config)
        try:
            found = train(config, LocalContext(folder))["metrics"]
        finally:
            folder.release()
    figures = (found["val/demo/video/auroc"], found["test/demo-heldout/video/auroc"])
    return found["val/demo/video/ap"], figures


def job(shards: str, seed: int, mode: str) -> tuple[str, Figures]:
    """LN-tuning, or the probe at its best learning rate."""
    paths = {name: f"{shards}/{name}.json" for name in ("train", "val", "heldout")}
    config = demo().replace(
        {
            "run.workers": 1,
            "run.seed": seed,
            "tuning.mode": mode,
            "data.train": (paths["train"],),
            "data.val": (f"demo={paths['val']}",),
            "data.test": (f"demo-heldout={paths['heldout']}",),
        }
    )
    rates = PROBE_RATES if mode == "probe" else (config.optim.lr,)
    return mode, max(run(config.replace({"optim.lr": rate})) for rate in rates)[1]


def trivial_features(image: np.ndarray) -> list[float]:
    """Statistics of pixels and compression of an RGB crop, [H, W, 3] uint8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    high = grey - cv2.GaussianBlur(grey, (0, 0), 1.5)
    gradients = np.abs(np.diff(grey, axis=0)).mean(), np.abs(np.diff(grey, axis=1)).mean()
    blocks = np.abs(np.diff(grey, axis=1)).mean(axis=0)
    histogram = np.histogram(grey, bins=16, range=(0, 256), density=True)[0]
    moments = [*image.mean(axis=(0, 1)), *image.std(axis=(0, 1))]
    noise = [high.std(), np.abs(high).mean(), blocks[7::8].mean() - blocks.mean()]
    sizes = [_bytes(image, "JPEG", quality=75), _bytes(image, "JPEG", quality=95), _bytes(image, "PNG")]
    return [float(value) for value in (*moments, *gradients, *noise, *np.log(sizes), *histogram)]


def _bytes(image: np.ndarray, kind: str, **options: int) -> int:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.tell()


def statistics_of(index: Index) -> np.ndarray:
    """Trivial features of all samples, cut as the model sees them."""
    loader = Loader(
        index, crop_scale=1.3, augment=None, seed=0, threads=2, prefetch=2, on_damage="raise", max_damaged=0
    )
    rows = []
    with loader:
        for batch in loader.batches(sequential_plan(len(index), 64), epoch=0, rank=0, world=1):
            kept = zip(batch.images.numpy(), batch.sizes.tolist(), batch.valid.tolist(), strict=True)
            rows += [trivial_features(image[:side, :side]) for image, side, valid in kept if valid]
    return np.array(rows)


def trivial(shards: str) -> Figures:
    """Video AUROC of a logistic regression on trivial statistics."""
    sets = {name: open_sets([f"{shards}/{name}.json"]) for name in ("train", "val", "heldout")}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, class_weight="balanced"))
    model.fit(statistics_of(sets["train"]), sets["train"].label)
    figures = []
    for name in ("val", "heldout"):
        scores = model.predict_proba(statistics_of(sets[name]))[:, 1]
        found = metrics.compute(
            "test",
            name,
            sets[name].label,
            scores,
            sets[name].video,
            sets[name].method,
            sets[name].methods,
        )
        figures.append(found[f"test/{name}/video/auroc"] or 0.0)
    return figures[0], figures[1]


def main(shards: Path = Path("data/demo"), seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Prints the comparison."""
    build(shards)
    print(f"{'':24}{'val':>8}{'held-out':>10}   (video AUROC)")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [(seed, mode) for seed in seeds for mode in ("ln", "probe")]
        found = pool.map(job, [str(shards)] * len(jobs), *zip(*jobs, strict=True))
        rows: dict[str, list[Figures]] = {}
        for (seed, _), (mode, figures) in zip(jobs, found, strict=True):
            rows.setdefault(mode, []).append(figures)
            print(f"{mode:8}seed {seed:<11}{figures[0]:>8.3f}{figures[1]:>10.3f}", flush=True)
    for mode, figures in rows.items():
        middle = [statistics.median(column) for column in zip(*figures, strict=True)]
        print(f"{mode:8}{'median':<16}{middle[0]:>8.3f}{middle[1]:>10.3f}")
    print("{:24}{:>8.3f}{:>10.3f}".format("trivial statistics", *trivial(str(shards))))


if __name__ == "__main__":
    tyro.cli(main)
