"""The short demo runs of ``benchmarks/kills.py``: their sets, their command, and how they are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dfdet.runs.runfolder import read_metrics
from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter

NAME = "run"
SIDE, FRAMES = 48, 4
GROUPS = {"train": range(12), "val": range(12, 18), "test": range(18, 24)}
EPOCHS, STEPS_PER_EPOCH = 2, 12
CROP = CropRecipe(template="demo", scale=1.6, size_px=SIDE)
DIARIES = {"tensorboard", "ray", "logs", "stacks"}
"""Folders of a run with what happened in it: a killed run tells more."""


def sets_in(folder: Path) -> dict[str, Path]:
    """Manifests of ``train``, ``val`` and ``test``."""
    return {split: folder / f"{split}.json" for split in GROUPS}


def build_sets(folder: Path) -> None:
    """Builds them: reals are noise, fakes the same with a dimmed middle."""
    for split, groups in GROUPS.items():
        with ShardWriter(folder, split, dataset="kills", split=split, crop=CROP) as writer:  # type: ignore[arg-type]
            for group in groups:
                writer.add_group([_face(group, split, n // 2, bool(n % 2)) for n in range(2 * FRAMES)])


def _face(group: int, split: str, frame: int, fake: bool) -> tuple[Sample, str, bytes, int, int]:
    random = np.random.default_rng([group, frame])
    image = cv2.GaussianBlur(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8), (0, 0), 1.5)
    if fake:
        image[14:34, 14:34] = image[14:34, 14:34] // 2
    sample = Sample(
        dataset="kills",
        source="dim" if fake else "real",
        label=int(fake),
        video=f"v{group}",
        frame=frame,
        group=f"kills/v{group}",
        group_level="exact",
        identity=f"p{group}",
        crop=CROP,
        split=split,  # type: ignore[arg-type]
    )
    return sample, "png", cv2.imencode(".png", image)[1].tobytes(), SIDE, SIDE


def arguments(sets: dict[str, Path], storage: Path) -> list[str]:
    """The command line of a run, after the program: two workers, a log line a step."""
    return [
        *("demo", "--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}"),
        *("--data.test", f"t={sets['test']}", "--data.global_batch", "8"),
        *("--model.image_size", "32", "--optim.epochs", str(EPOCHS)),
        *("--engine.log_every", "1", "--engine.checkpoint_every", "3"),
        *("--run.storage", str(storage), "--run.name", NAME, "--run.cpus_per_worker", "0.5"),
        *("--run.device", "cpu"),
    ]


def difference(whole: Path, other: Path) -> str:
    """What the folder of a run has other than that of an uninterrupted one; empty if nothing.

    Compared are the batches (``train/batch_crc32``), losses and metrics of each record, bit for bit;
    the result; every file of the checkpoints, so weights and moments too; and which files there are.
    """
    files, found = _files(whole), _files(other)
    if files != found:
        return f"files: {sorted(found - files)} too many, {sorted(files - found)} missing"
    expected, records = (_without_speed(read_metrics(folder / "metrics.jsonl")) for folder in (whole, other))
    if any("train/batch_crc32" not in record for record in expected if "steps" in record):
        return "metrics.jsonl does not tell the batches (train/batch_crc32)"
    if len(records) != len(expected):
        return f"metrics.jsonl: {len(records)} records, not {len(expected)}"
    for record, wanted in zip(records, expected, strict=True):
        if names := [name for name in {*record, *wanted} if record.get(name) != wanted.get(name)]:
            return f"metrics.jsonl, step {wanted['step']}: {', '.join(sorted(names))} differ"
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, other)]
    for name in ("status", "metrics", "counts", "step", "epoch"):
        if results[0][name] != results[1][name]:
            return f"result.json: {name} differs"
    for file in sorted(files):
        if file.startswith("checkpoints/") and _content(whole / file) != _content(other / file):
            return f"{file} differs"
    return ""


def _files(run: Path) -> set[str]:
    paths = (path.relative_to(run) for path in run.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in paths if path.parts[0] not in DIARIES}


def _without_speed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if not key.startswith("perf/")} for record in records
    ]


def _content(path: Path) -> Any:
    """Bytes; of the config and its checksum, which name the storage, what else there is."""
    if path.name not in {"config.json", "checksums.json"}:
        return path.read_bytes()
    tree = json.loads(path.read_text())
    if path.name == "config.json":
        del tree["run"]["storage"]
    else:
        del tree["files"]["config.json"]
    return tree
