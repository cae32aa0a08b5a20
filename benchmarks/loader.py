"""Loader against Pillow and a PyTorch DataLoader: images a CPU-second from stored crops to model input.

Both sides decode the same wide crops of 320 px, cut the middle at scale 1.3, augment as GenD does or
not at all, resize to 224 by antialiased bicubic and normalise to float32 batches. The stand-in reads
loose files with Pillow, uses torchvision transforms and worker processes, as public code does.

    python benchmarks/loader.py [--images 512] [--rounds 3]

CPU time includes that of threads and ended worker processes. Rounds alternate between both sides;
the table has medians.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
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
from dfdet.data.transforms import ToInput
from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter

BATCH, SIDE, CUT, INPUT, WORKERS = 64, 320, 260, 224, 2
MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
SAVE = {
    "webp": {"format": "WEBP", "lossless": True},
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95},
}


def picture(seed: int) -> np.ndarray:
    """Noise in octaves, about as compressible as a face."""
    random = np.random.default_rng(seed)
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    for octave in range(2, 8):
        small = random.normal(0, 2.0 ** (7.5 - octave), (2**octave, 2**octave, 3)).astype(np.float32)
        image += cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    image += random.normal(0, 0.5, image.shape)
    return (image + 128).clip(0, 255).astype(np.uint8)


def build(folder: Path, ext: str, count: int) -> tuple[Index, list[Path]]:
    """The same images as a shard set and as loose files."""
    crop = CropRecipe(template="demo", scale=1.6, size_px=SIDE)
    files = []
    (folder / ext).mkdir()
    with ShardWriter(folder, f"set-{ext}", dataset="bench", split="all", crop=crop) as writer:
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(picture(number % 64)).save(buffer, **SAVE[ext])
            sample = Sample(dataset="bench", source="real", label=0, video=str(number), frame=0, crop=crop)
            writer.add_group([(sample, ext, buffer.getvalue(), SIDE, SIDE)])
            files.append(folder / ext / f"{number}.{ext}")
            files[-1].write_bytes(buffer.getvalue())
    return open_sets([folder / f"set-{ext}.json"]), files


class Files(Dataset):
    """Loose image files through Pillow and torchvision."""

    def __init__(self, files: list[Path], augmented: bool) -> None:
        steps: list[Callable] = [v2.CenterCrop(CUT)]
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


def ours(index: Index, augmented: bool) -> Iterable[torch.Tensor]:
    """Model inputs from the loader of this project."""
    plan = epoch_plan(index, PlanSpec(0, BATCH, "single"), 0)
    to_input = ToInput(INPUT, MEAN, STD)
    augment = Augment() if augmented else None
    options = {"crop_scale": 1.3, "augment": augment, "seed": 0, "threads": WORKERS, "prefetch": 4}
    with Loader(index, on_damage="raise", max_damaged=0, **options) as loader:
        for batch in loader.batches(plan, epoch=0, rank=0, world=1):
            yield to_input(batch.images, batch.sizes)


def standin(files: list[Path], augmented: bool) -> Iterable[torch.Tensor]:
    """Model inputs from Pillow and a DataLoader."""
    return DataLoader(Files(files, augmented), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)


def cpu_seconds() -> float:
    """CPU time of this process and its ended children (seconds)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def measure(batches: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Images a CPU-second and images a wall second."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (cpu_seconds() - cpu), images / (time.perf_counter() - wall)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images a round (images)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (times)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'store':6}{'KB/img':>8} {'augment':8}{'ours':>8}{'stand-in':>10}{'ratio':>7}   (img/CPU-s)"
          f"{'ours':>8}{'stand-in':>10}{'ratio':>7}   (img/s)")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for ext in SAVE:
            index, files = build(Path(folder), ext, options.images)
            for augmented in (False, True):
                sides: tuple[list, list] = ([], [])
                for _ in range(options.rounds):
                    sides[0].append(measure(ours(index, augmented)))
                    sides[1].append(measure(standin(files, augmented)))
                cells = ""
                for kind in (0, 1):
                    mine, theirs = (statistics.median(run[kind] for run in side) for side in sides)
                    cells += f"{mine:8.0f}{theirs:10.0f}{mine / theirs:6.1f}x" + " " * 14
                name = "gend" if augmented else "none"
                print(f"{ext:6}{index.size.mean() / 1000:8.1f} {name:8}{cells.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
