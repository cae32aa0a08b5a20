"""Results of real scorings, for tests of reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dfdet.evaluation.assemble import Scores, assemble
from dfdet.evaluation.options import Options
from dfdet.evaluation.request import Request, open_request
from dfdet.evaluation.result import Result, find
from dfdet.evaluation.scorer import Part, Scorer
from dfdet.schema import CropRecipe, Sample
from shards.sets.write import ShardWriter

CROP = CropRecipe(template="demo", scale=1.6, size_px=48)


def scored(
    change: Callable[[Request, Scores], Scores] | None = None, without_threshold: bool = False, **values: Any
) -> Result:
    """Scores with one worker and tells of it; later checkpoints get noise of their own."""
    request = open_request(Options(**({"batch": 8, "resamples": 100} | values)))
    if without_threshold:
        request = replace(request, models=tuple(replace(model, threshold=None) for model in request.models))
    scorer = Scorer(request.work, "cpu", 1)
    parts = {part: _noisy(scorer.score(part)) for part in request.slices}
    scores = assemble(request, parts.__getitem__)
    return find(request, change(request, scores) if change else scores)


def _noisy(part: Part) -> Part:
    rng = np.random.default_rng(0)
    for column in range(1, part.scores.shape[2]):
        part.scores[:, :, column, 1] += rng.normal(0, 2 * column, part.scores.shape[:2])
        part.scores[:, :, column, 0] = 1 / (1 + np.exp(-part.scores[:, :, column, 1]))
    return part


def write_set(folder: Path, methods: tuple[str, ...], video: str, groups: int = 3) -> Path:
    """A set of noise whose videos and methods have any names; returns its manifest."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "set", dataset="odd", split="test", crop=CROP) as writer:
        for number in range(groups):
            writer.add_group([_sample(rng, f"{video}{number}", method) for method in methods])
    return folder / "set.json"


def _sample(rng: np.random.Generator, video: str, method: str) -> tuple[Sample, str, bytes, int, int]:
    data = cv2.imencode(".png", rng.integers(0, 256, (48, 48, 3), np.uint8))[1].tobytes()
    sample = Sample(
        dataset="odd",
        source=method,
        label=int(method != "real"),
        video=video,
        frame=0,
        group=f"odd/{video}",
        group_level="exact",
        identity=video,
        crop=CROP,
        split="test",
    )
    return sample, "png", data, 48, 48
