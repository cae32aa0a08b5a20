"""Shard sets with a plain signal, for tests of the whole chain."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter
from tests.signal_runs import config_for, run

CROP = CropRecipe(template="demo", scale=1.6, size_px=48)


class FromBothEnds(LoadScopeScheduling):
    """Hands out files from the first on, which use Ray and mostly wait; to one process from the last on."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is self.nodes[-1] and self.workqueue:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds:
    """xdist's ``loadgroup`` (3.8) groups nothing under pytest 9.2."""
    return FromBothEnds(config, log)


@cache
def uses_ray(file: Path) -> bool:
    """Whether a test of the file is marked so."""
    return "pytest.mark.ray" in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs CUDA where there is none; puts first what uses Ray, which takes longest."""
    items.sort(key=lambda item: not uses_ray(item.path))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def signal_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifests of ``train``, ``val`` and ``test``: reals are noise, fakes the same with a dimmed middle."""
    folder = tmp_path_factory.mktemp("signal")
    groups = {"train": range(12), "val": range(12, 18), "test": range(18, 24)}
    return {split: write_signal_set(folder, split, numbers) for split, numbers in groups.items()}


@pytest.fixture(scope="session")
def trained_run(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run on these sets; validation ``v``, test ``t``. Not to be changed."""
    storage = tmp_path_factory.mktemp("trained")
    run(config_for(signal_sets, storage))
    return storage / "run"


def write_signal_set(folder: Path, split: str, numbers: range, frames: int = 4) -> Path:
    """A set with a real video and two fakes of it in each group."""
    writer = ShardWriter(folder, split, dataset="signal", split=split, crop=CROP)  # type: ignore[arg-type]
    with writer:
        for number in numbers:
            writer.add_group(_group(number, split, frames))
    return folder / f"{split}.json"


def _group(number: int, split: str, frames: int) -> list[tuple[Sample, str, bytes, int, int]]:
    rng = np.random.default_rng(number)
    samples = []
    for frame in range(frames):
        noise = cv2.GaussianBlur(rng.integers(0, 256, (48, 48, 3), np.uint8), (0, 0), 1.5).astype(np.float32)
        real = (noise - 128) * 3 + 128
        for method, strength in (("real", 0.0), ("dim", 0.6), ("tint", 0.6)):
            image = real.copy()
            image[14:34, 14:34] *= 1 - strength if method != "tint" else np.array([1.0, 1 - strength, 1.0])
            sample = Sample(
                dataset="signal",
                source=method,
                label=int(method != "real"),
                video=f"v{number}",
                frame=frame,
                group=f"signal/v{number}",
                group_level="exact",
                identity=f"p{number}",
                crop=CROP,
                split=split,  # type: ignore[arg-type]
            )
            data = cv2.imencode(".png", image.clip(0, 255).astype(np.uint8))[1].tobytes()
            samples.append((sample, "png", data, 48, 48))
    return samples
