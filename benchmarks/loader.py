"""Loader against public practice: images a CPU-second from stored crops.

The stand-in for the public loader reads PNG files of the same crops with Pillow, resizes to 224 by
Pillow's bicubic, makes float32 and normalises in the worker processes of a DataLoader; where it
augments, by torchvision's v2 transforms, as public code does. Against it, from shards:

- input: like for like, float32 224 on the CPU;
- crops: as the design delivers, uint8 crops in the batch's buffer, which the device resizes;
- augmented: the same with the augmentation on CPU threads, against the augmenting stand-in.

Crops are 256 px; "wide" has 320 px stored and 260 cut, against the same stand-in. All is run in turn,
in rounds, and the tables have medians. CPU time includes that of threads and ended processes.

    python benchmarks/loader.py [--images 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dfdet.config import Augment
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import PlanSpec, epoch_plan
from dfdet.data.prepare import Prepare
from dfdet.data.transforms import ToInput
from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter

BATCH, INPUT, WORKERS, DISTINCT = 64, 224, 2, 64
MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
SIDES = {"": (256, 1.3), "wide ": (320, 1.6)}
SAVE = {
    "jpg": {"format": "JPEG", "quality": 95},
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 20},  # as shards stores it
    "png": {"format": "PNG"},
}
TARGETS = {"jpg": (6, 18, 9), "webp": (3, 4.5, 4.5), "png": (2.4, 3.5, 3.5)}
"""Ratios to reach: input, crops, augmented."""
KINDS = ("input", "crops", "augmented")
Batches = Callable[[], Iterable[torch.Tensor]]


def picture(seed: int, side: int) -> np.ndarray:
    """Noise in octaves, as compressible as a face: at 256 px JPEG 16 KB, PNG 70, lossless WebP 54."""
    random = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for octave in range(1, 8):
        cells = 2**octave
        small = random.normal(0, 1, (cells, cells, 1)) + 0.1 * random.normal(0, 1, (cells, cells, 3))
        small = (small * 2 ** (6.3 - 0.7 * octave)).astype(np.float32)
        image += cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    image += random.normal(0, 0.2, (side, side, 1))
    return (image + 128).clip(0, 255).astype(np.uint8)


def build(folder: Path, name: str, ext: str, side: int, scale: float, count: int) -> Index:
    """A shard set of pictures, each of them several times."""
    crop = CropRecipe(template="demo", scale=scale, size_px=side)
    stored = [encoded(picture(seed, side), ext) for seed in range(min(count, DISTINCT))]
    with ShardWriter(folder, name, dataset="bench", split="all", crop=crop) as writer:
        for number in range(count):
            sample = Sample(dataset="bench", source="real", label=0, video=str(number), frame=0, crop=crop)
            writer.add_group([(sample, ext, stored[number % len(stored)], side, side)])
    return open_sets([folder / f"{name}.json"])


def loose_files(folder: Path, count: int) -> list[Path]:
    """The PNG files of the stand-in."""
    stored = [encoded(picture(seed, SIDES[""][0]), "png") for seed in range(min(count, DISTINCT))]
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(stored[number % len(stored)])
    return files


def encoded(image: np.ndarray, ext: str) -> bytes:
    """The picture in a format."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **SAVE[ext])
    return buffer.getvalue()


class Files(Dataset):
    """The stand-in: loose PNG files through Pillow and torchvision."""

    def __init__(self, files: list[Path], augmented: bool) -> None:
        steps: list[Callable] = []
        if augmented:
            steps += [
                v2.RandomHorizontalFlip(0.5),
                v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1)),
                v2.RandomApply([v2.GaussianBlur(7, (0.1, 2.0))], 0.1),
                v2.ColorJitter(0.1, 0.1),
                v2.PILToTensor(),
                v2.JPEG((40, 100)),
                v2.ToPILImage(),
            ]
        steps += [v2.Resize((INPUT, INPUT), v2.InterpolationMode.BICUBIC), v2.ToImage()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.files, self.transform = files, v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row]) as image:
            return self.transform(image.convert("RGB"))


class Tars(Dataset):
    """Our decoding in the worker processes of a DataLoader, to compare them with threads."""

    def __init__(self, index: Index) -> None:
        self.path, self.offset, self.size = Path(index.shards[0]), index.offset, index.size
        self.prepare = Prepare(max_side=1024)

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, row: int) -> torch.Tensor:
        with self.path.open("rb") as tar:
            data = os.pread(tar.fileno(), int(self.size[row]), int(self.offset[row]))
        return torch.from_numpy(self.prepare.crop(data, SIDES[""][0], SIDES[""][0], None))


def processes(data: Dataset, workers: int = WORKERS) -> Iterable[torch.Tensor]:
    """Batches of a dataset from worker processes."""
    return DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)


class Ours:
    """This project's loader; like a training run it keeps its buffers from epoch to epoch."""

    def __init__(self, index: Index, kind: str, threads: int = WORKERS) -> None:
        augment = Augment() if kind == "augmented" else None
        options = {"crop_scale": 1.3, "augment": augment, "seed": 0, "threads": threads, "prefetch": 4}
        self.loader = Loader(index, on_damage="raise", max_damaged=0, **options)
        self.plan = epoch_plan(index, PlanSpec(0, BATCH, "single"), 0)
        self.to_input = ToInput(INPUT, MEAN, STD) if kind == "input" else None

    def __call__(self) -> Iterable[torch.Tensor]:
        """Batches of an epoch."""
        for batch in self.loader.batches(self.plan, epoch=0, rank=0, world=1):
            yield self.to_input(batch.images, batch.sizes) if self.to_input else batch.images


def cpu_seconds() -> float:
    """CPU time of this process and its ended children (seconds)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def measure(batches: Batches) -> tuple[float, float]:
    """Images a CPU-second and images a second."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    images = sum(len(batch) for batch in batches())
    return images / (cpu_seconds() - cpu), images / (time.perf_counter() - wall)


def medians(runs: dict[str, Batches], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians over rounds of all runs in turn."""
    found = defaultdict(list)
    for _ in range(rounds):
        for name, batches in runs.items():
            found[name].append(measure(batches))
    return {
        name: (statistics.median(cpu for cpu, _ in each), statistics.median(wall for _, wall in each))
        for name, each in found.items()
    }


def loader_runs(indexes: dict[str, Index], files: list[Path]) -> dict[str, Batches]:
    """All runs of the loader table."""
    runs: dict[str, Batches] = {
        "stand-in": partial(processes, Files(files, False)),
        "stand-in augmented": partial(processes, Files(files, True)),
    }
    for name, index in indexes.items():
        runs |= {f"{name} {kind}": Ours(index, kind) for kind in KINDS}
    return runs


def thread_runs(index: Index) -> dict[str, Batches]:
    """Threads from 1 to the number of CPUs, and processes."""
    runs: dict[str, Batches] = {}
    for number in thread_counts():
        runs |= {f"{number} {kind}": Ours(index, kind, number) for kind in ("crops", "augmented")}
        runs[f"{number} processes"] = partial(processes, Tars(index), number)
    return runs


def thread_counts() -> list[int]:
    """1, 2, 4 and so on, and the number of CPUs."""
    cpus = len(os.sched_getaffinity(0))
    return sorted({2**power for power in range(cpus.bit_length()) if 2**power < cpus} | {cpus})


def print_loader(found: dict[str, tuple[float, float]], indexes: dict[str, Index]) -> None:
    """Images a CPU-second and the ratio to the stand-in, with the target beside it."""
    plain, augmented = found["stand-in"][0], found["stand-in augmented"][0]
    print(f"stand-in, images a CPU-second: {plain:.0f}, augmenting {augmented:.0f}\n")
    print(f"{'store':11}{'KB':>6}" + "".join(f"{kind:>12}{'ratio':>8}{'target':>8}" for kind in KINDS))
    for name, index in indexes.items():
        cells = ""
        for kind, target in zip(KINDS, TARGETS[name.split()[-1]], strict=True):
            speed = found[f"{name} {kind}"][0]
            ratio = speed / (augmented if kind == "augmented" else plain)
            cells += f"{speed:12.0f}{ratio:7.1f}x" + (f"{target:7.1f}x" if " " not in name else f"{'':8}")
        print(f"{name:11}{index.size.mean() / 1000:6.1f}{cells.rstrip()}")


def print_threads(found: dict[str, tuple[float, float]], ext: str) -> None:
    """Images a second and a CPU-second by number of threads or processes."""
    kinds = ("crops", "augmented", "processes")
    print(f"\n{ext}, images a second (a CPU-second) by threads; processes: crops from a DataLoader")
    print(f"{'threads':>7}" + "".join(f"{kind:>16}" for kind in kinds))
    for number in thread_counts():
        cells = (found[f"{number} {kind}"] for kind in kinds)
        print(f"{number:7}" + "".join(f"{wall:9.0f}{f'({cpu:.0f})':>7}" for cpu, wall in cells))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images a run (images)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all runs (times)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        indexes = {
            prefix + ext: build(folder, f"{prefix.strip()}{ext}", ext, side, scale, options.images)
            for prefix, (side, scale) in SIDES.items()
            for ext in SAVE
        }
        files = loose_files(folder, options.images)
        print_loader(medians(loader_runs(indexes, files), options.rounds), indexes)
        print_threads(medians(thread_runs(indexes["webp"]), options.rounds), "webp")
    load = os.getloadavg()[0]
    print(f"\n{len(os.sched_getaffinity(0))} CPUs, load average {load:.1f} at the end")


if __name__ == "__main__":
    main()
