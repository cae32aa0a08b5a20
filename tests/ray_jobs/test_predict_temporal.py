"""Prediction with a temporal head: the clips of a person in a file, as an evaluation makes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.config import Config
from dfdet.context import LocalContext
from dfdet.data.index import open_sets
from dfdet.evaluation.evaluate import score_index
from dfdet.prediction.score import Scorer, Seen
from dfdet.runs.runfolder import RunFolder
from dfdet.train import train
from ray_jobs import predict
from tests.ray_jobs.predicting import FRAMES, write_checkpoint, write_detector, write_set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A set of drawn clips, and checkpoints trained on it with and without a temporal head."""
    folder = tmp_path_factory.mktemp("temporal")
    weights = write_detector(folder)
    manifest = write_set(folder, weights)
    plain = write_checkpoint(folder / "runs", manifest)
    saved = json.loads((plain / "config.json").read_text())
    config = Config.model_validate(saved).replace(
        {
            "run.name": "temporal",
            "model.temporal": True,
            "data.sampling": "clip",
            "data.clip_frames": 3,
            "data.global_batch": 12,
            "optim.epochs": 3,
        }
    )
    run, _ = RunFolder.claim(folder / "runs", "temporal", config)
    try:
        train(config, LocalContext(run))
    finally:
        run.release()
    return SimpleNamespace(
        clips=folder / "raw",
        manifest=manifest,
        weights=weights,
        plain=plain,
        temporal=folder / "runs" / "temporal",
    )


def words(made: SimpleNamespace, checkpoint: Path, *more: Any) -> list[str]:
    given = ["--checkpoint", checkpoint, "--weights", made.weights, "--frames", FRAMES, "--threads", 1]
    return [str(word) for word in [made.clips, *given, "--aggregate", "temporal", *more]]


def clip_scores(made: SimpleNamespace) -> tuple[Any, Any]:
    """The set's index, and the scores of clips that training's evaluation gives."""
    opened, index = open_checkpoint(str(made.temporal)), open_sets([made.manifest])
    alone: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    found = score_index(opened.detector, opened.detector, index, opened.config, alone)
    return index, found.clip_scores


def test_a_file_scores_as_its_clips_in_the_shards(made: SimpleNamespace, tmp_path: Path) -> None:
    index, expected = clip_scores(made)
    assert predict.main(words(made, made.temporal, "--out", tmp_path / "out")) == 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(index.videos) == 4
    names = [video.split("/")[-1] for video in index.videos]
    for record in map(json.loads, lines):
        code = names.index(Path(record["path"]).name.replace(".", "%2E"))
        assert record["score"] == pytest.approx(expected[index.video == code].mean(), abs=1e-6)
        assert record["aggregate"] == "temporal"
        mean = np.mean([frame["score"] for frame in record["frames"]])
        assert abs(record["score"] - mean) > 1e-6


def test_persons_do_not_share_a_clip(made: SimpleNamespace) -> None:
    scorer = Scorer(open_checkpoint(str(made.temporal)), 1.6)
    crops = [np.random.default_rng(n).integers(0, 256, (96, 96, 3), np.uint8) for n in range(7)]
    faces, frames = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([0, 0, 4, 4, 8, 8, 12])
    both = scorer(crops, Seen(faces, frames)).of_clips
    assert both is not None
    for face in (0, 1):
        own = np.flatnonzero(faces == face)
        alone = scorer([crops[n] for n in own], Seen(np.zeros(len(own), np.int64), frames[own])).of_clips
        assert alone is not None
        np.testing.assert_allclose(both.scores[own], alone.scores, rtol=0, atol=1e-6)
    assert len(np.unique(both.scores[faces == 0])) == 2  # 4 frames are two clips


def test_without_a_temporal_head_it_is_refused_in_a_line(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main(words(made, made.plain)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: aggregate=temporal: --checkpoint ")
    assert "without a temporal head" in told[0]
