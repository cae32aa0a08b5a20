"""Crops to scores: the checkpoint's own cut and preprocessing, as its evaluation has them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dfdet.checkpoints.opened import Opened
from dfdet.config import Config, Data, Engine, Model
from dfdet.data.index import open_sets
from dfdet.errors import DfdetError
from dfdet.evaluation.evaluate import score_index
from dfdet.model.detector import build_detector
from dfdet.prediction.score import Scorer
from dfdet.schema import CropRecipe

ALONE: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))


def opened_with(**values: Any) -> Opened:
    config = Config(
        data=Data(crop_scale=1.3),
        model=Model(backbone="tiny", pretrained=None, image_size=32),
        engine=Engine(precision="fp32"),
    ).replace(values)
    detector = build_detector(config).eval()
    return Opened("c", None, config, detector, CropRecipe(template="gend", scale=1.6), None, "f")


def stored(manifest: Path) -> list[np.ndarray]:
    """The crops of a set, decoded, in its order."""
    found = []
    for tar in sorted(manifest.parent.glob(f"{manifest.stem}-*.tar")):
        with tarfile.open(tar) as file:
            for member in file.getmembers():
                if member.name.endswith(".png"):
                    data = np.frombuffer(file.extractfile(member).read(), np.uint8)  # type: ignore[union-attr]
                    found.append(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
    return found


@pytest.mark.parametrize("resize", ["device", "pillow"])
def test_scores_are_those_of_an_evaluation_of_the_same_crops(
    signal_sets: dict[str, Path], resize: str
) -> None:
    opened = opened_with(**{"data.resize": resize})
    index = open_sets([signal_sets["test"]])
    expected = score_index(opened.detector, opened.detector, index, opened.config, ALONE)
    found = Scorer(opened, stored_scale=1.6)(stored(signal_sets["test"]))
    assert len(found.scores) == len(expected.scores) == 72
    assert np.allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert np.allclose(found.logits, expected.logits, rtol=0, atol=1e-5)


def test_crops_of_unknown_scale_are_used_whole() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    scorer = Scorer(opened_with(), stored_scale=None)
    assert np.array_equal(scorer.cut(crop), crop)
    assert Scorer(opened_with(), stored_scale=1.6).cut(crop).shape == (33, 33, 3)  # 40 * 1.3 / 1.6


def test_crops_of_mixed_sides_score_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (40, 64, 40, 120)]
    scorer = Scorer(opened_with(), stored_scale=1.6, batch=3)
    alone = np.concatenate([scorer([crop]).logits for crop in crops])
    assert np.allclose(scorer(crops).logits, alone, atol=1e-5)


def test_no_crops_give_no_scores() -> None:
    scorer = Scorer(opened_with(), stored_scale=1.6)
    assert scorer([]).scores.shape == (0,)
    assert len(scorer.evidence([])) == 0


def test_a_vast_crop_is_bounded_as_in_training() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), np.uint8)
    scorer = Scorer(opened_with(), stored_scale=None)
    small = cv2.resize(crop, (1024, 1024), interpolation=cv2.INTER_AREA)
    assert np.array_equal(scorer([crop]).logits, scorer([small]).logits)


def test_a_damaged_model_is_told() -> None:
    opened = opened_with()
    with torch.no_grad():
        opened.detector.head.linear.bias.fill_(torch.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(DfdetError, match="its scores are NaN"):
        Scorer(opened, 1.6)([np.zeros((40, 40, 3), np.uint8)])
