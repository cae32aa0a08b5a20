"""Prediction with a published detector, from the folder that its authors give out to the records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.data.index import open_sets
from dfdet.evaluation.evaluate import score_index
from ray_jobs import predict
from tests.dfdet.published.authors import Reference, gend_folder, perception_reference
from tests.ray_jobs.predicting import FRAMES, write_detector, write_set

TOWER, SIDE = "vit_pe_core_tiny_patch16_384", 224


@pytest.fixture(scope="module")
def reference() -> Reference:
    return perception_reference(TOWER)


@pytest.fixture(scope="module")
def folder(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "gend"
    return gend_folder(path, reference.state_dict(), backbone=TOWER, head="LinearNorm")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def predicted(out: Path, *words: Any) -> list[dict[str, Any]]:
    assert predict.main([str(word) for word in (*words, "--threads", 1, "--out", out)]) == 0
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_ready_crops_have_the_scores_of_its_authors_code(
    folder: Path, reference: Reference, tmp_path: Path
) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    for number, crop in enumerate(crops):
        Image.fromarray(crop).save(tmp_path / f"{number}.png")
    found = predicted(tmp_path / "out", tmp_path, "--crops", "--checkpoint", folder)
    preprocess = open_checkpoint(str(folder)).detector.preprocess
    images = (torch.from_numpy(crops) / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    logits = reference(images.permute(0, 3, 1, 2))
    expected = logits.softmax(dim=1)[:, 1].tolist()
    assert np.ptp(expected) > 1e-3  # equality says something
    assert [record["score"] for record in found] == pytest.approx(expected, abs=1e-5)
    gaps = (logits[:, 1] - logits[:, 0]).tolist()
    assert [record["frames"][0]["logit"] for record in found] == pytest.approx(gaps, abs=1e-4)


def test_without_a_threshold_there_is_a_score_and_no_verdict(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "a.png")
    given = (tmp_path / "a.png", "--crops", "--checkpoint", folder)
    [bare] = predicted(tmp_path / "bare", *given)
    assert (bare["verdict"], bare["threshold"]) == (None, None)
    [told] = predicted(tmp_path / "told", *given, "--threshold", bare["score"])
    assert (told["verdict"], told["threshold_origin"]) == ("fake", "--threshold")


def test_a_video_is_cut_as_the_flags_say_and_scores_as_the_shards_made_so(
    folder: Path, tmp_path: Path
) -> None:
    weights = write_detector(tmp_path)
    index = open_sets([write_set(tmp_path, weights)])
    cut = ("--template", "gend", "--scale", 1.6, "--size_px", 96, "--selection", "largest")
    finder = ("--detector", "onnx", "--weights", weights, "--frames", FRAMES)
    [record] = predicted(tmp_path / "out", tmp_path / "raw" / "2.mp4", "--checkpoint", folder, *cut, *finder)
    assert record["crop"] == index.crop.model_dump()

    opened = open_checkpoint(str(folder))
    alone: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    scores = score_index(opened.detector, opened.detector, index, opened.config, alone)
    of_video = index.video[scores.ids] == index.videos.index("own/real/2%2Emp4")
    expected = scores.scores[of_video].tolist()
    assert len(expected) == FRAMES
    assert [frame["score"] for frame in record["frames"]] == pytest.approx(expected, abs=1e-6)
    assert record["score"] == pytest.approx(np.mean(expected), abs=1e-6)
