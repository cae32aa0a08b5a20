"""Epochs from remote shards, cold and warm, against local reading: images and MB a second.

Shards lie behind an HTTP server of this machine (Python's own, a process). Cold starts with an empty
cache, warm with all copies there, local reads the files. A bare download of the same shards, eight at a
time without decoding, bounds what cold can reach.

    python benchmarks/cache.py [--images 4096] [--rounds 3] [--threads 2]

Rounds alternate between the sides; the table has medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from dfdet.data.cache import GIB, Cache
from dfdet.data.feed import TRANSFERS
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import PlanSpec, epoch_plan
from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter

BATCH, SIDE, BLOCK_SHARDS = 64, 320, 4
SHARD_BYTES = 8_000_000


def build(folder: Path, count: int) -> Path:
    """A set of JPEG crops about as compressible as faces; its manifest."""
    crop = CropRecipe(template="demo", scale=1.6, size_px=SIDE)
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(32):
        small = random.integers(0, 256, (20, 20, 3), np.uint8)
        image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = (image + random.integers(-6, 7, image.shape)).clip(0, 255).astype(np.uint8)
        pictures.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    writer = ShardWriter(folder, "set", dataset="bench", split="all", crop=crop, max_shard_bytes=SHARD_BYTES)
    with writer:
        for number in range(count):
            sample = Sample(dataset="bench", source="real", label=0, video=str(number), frame=0, crop=crop)
            writer.add_group([(sample, "jpg", pictures[number % 32], SIDE, SIDE)])
    return folder / "set.json"


def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    """A file server and its URL."""
    code = (
        "import functools, http.server as h\n"
        "h.SimpleHTTPRequestHandler.log_message = lambda *a: None\n"
        f"handler = functools.partial(h.SimpleHTTPRequestHandler, directory={str(folder)!r})\n"
        "server = h.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n"
        "print(server.server_address[1], flush=True)\n"
        "server.serve_forever()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def epoch(index: Index, threads: int) -> None:
    """Decodes an epoch in blocks of shards."""
    plan = epoch_plan(index, PlanSpec(0, BATCH, "single", block_shards=BLOCK_SHARDS), 0)
    options = {"crop_scale": 1.3, "augment": None, "seed": 0, "threads": threads, "prefetch": 4}
    with Loader(index, on_damage="raise", max_damaged=0, **options) as loader:
        for _ in loader.batches(plan, epoch=0, rank=0, world=1):
            pass


def download(index: Index) -> None:
    """Fetches all shards, as many at a time as a rank does."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        for descriptor in pool.map(index.cache.acquire, index.shards):
            os.close(descriptor)


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=4096, help="images of an epoch (images)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (times)")
    parser.add_argument("--threads", type=int, default=2, help="decode threads (threads)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        local = open_sets([build(folder, options.images)])
        server, url = serve(folder)
        try:
            cold, warm, bare = (
                open_sets([f"{url}/set.json"], cache=Cache(folder / side, 100 * GIB))
                for side in ("cold", "warm", "bare")
            )
            epoch(local, options.threads)
            epoch(warm, options.threads)
            sides: dict[str, Callable[[], None]] = {
                "local": lambda: epoch(local, options.threads),
                "warm": lambda: epoch(warm, options.threads),
                "cold": lambda: epoch(cold, options.threads),
                "download": lambda: download(bare),
            }
            found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, work in sides.items():
                    if side in ("cold", "download"):
                        shutil.rmtree(folder / {"download": "bare"}.get(side, side), ignore_errors=True)
                    found[side].append(measure(work))
        finally:
            server.kill()
            server.wait()
        show(found, len(local), sum(Path(str(path)).stat().st_size for path in local.shards))


def show(found: dict[str, list[tuple[float, float]]], images: int, size: int) -> None:
    """The table."""
    print(f"{images} JPEG crops of {SIDE} px, {size / 1e6:.0f} MB, medians of {len(found['local'])} rounds")
    print(f"{'side':10}{'img/s':>8}{'MB/s':>8}{'img/CPU-s':>11}{'time to local':>15}")
    local = statistics.median(wall for wall, _ in found["local"])
    for side, times in found.items():
        wall = statistics.median(run[0] for run in times)
        cpu = statistics.median(run[1] for run in times)
        print(
            f"{side:10}{images / wall:8.0f}{size / wall / 1e6:8.0f}{images / cpu:11.0f}{wall / local:14.2f}x"
        )


if __name__ == "__main__":
    main()
