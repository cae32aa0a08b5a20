"""A bundle is read as export wrote it, and what is wrong with one is told in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.errors import ConfigError, WeightsError
from dfdet.prediction.score import Scorer
from dfdet.serving.bundle import open_bundle
from dfdet.serving.graph import OnnxGraph, TorchGraph, open_graph
from tests.dfdet.serving.bundles import Made, seal, write_json


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.bundle, tmp_path / "bundle"))


def crops(*sides: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for side in sides]


def test_a_bundle_tells_model_cut_and_threshold(made: Made) -> None:
    opened, bundle = open_checkpoint(str(made.checkpoint)), open_bundle(made.bundle)
    assert bundle.fingerprint == opened.fingerprint
    assert (bundle.crop, bundle.crop_scale) == (opened.crop, opened.config.data.crop_scale)
    assert bundle.threshold == opened.threshold
    assert bundle.precisions("cpu") == ["float32"]


def test_scores_are_those_of_the_checkpoint(made: Made) -> None:
    opened, bundle = open_checkpoint(str(made.checkpoint)), open_bundle(made.bundle)
    given = crops(96, 96, 50, 96, 1500)
    expected = Scorer(opened, opened.crop.scale)(given)
    graph = open_graph(bundle, "float32", "cpu", 1)
    found = graph([bundle.cut(crop, bundle.crop.scale) for crop in given])
    assert np.allclose([each.score for each in found], expected.scores, rtol=0, atol=2e-4)
    assert np.allclose([each.logit for each in found], expected.logits, rtol=0, atol=1e-3)
    assert [each.batch for each in found] == [3, 0, 1, 0, 1]


def test_torchs_program_scores_as_onnx(made: Made) -> None:
    given = crops(40, 64, 40)
    found = TorchGraph(made.bundle / "model.pt2", "cpu", 1)(given)
    expected = OnnxGraph(made.bundle / "model.onnx", 1)(given)
    assert np.allclose([e.score for e in found], [e.score for e in expected], rtol=0, atol=1e-4)


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"no model-int8.onnx for cpu, but float32; choose"):
        open_bundle(made.bundle).graph("int8", "cpu")
    with pytest.raises(ConfigError, match=r"no model-float16.pt2 for cuda, but float32; choose"):
        open_bundle(made.bundle).graph("float16", "cuda")


def change(file: str, **values: object) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        write_json(folder / file, json.loads((folder / file).read_text()) | values)
        if file != "bundle.json":
            seal(folder)

    return changed


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "no bundle.json in it; give a folder that export.py wrote"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "is not of this version"),
        (change("bundle.json", format_version=2), "format_version: Input should be 1"),
        (change("bundle.json", kind="other"), "kind: Input should be 'dfdet-detector'"),
        (change("preprocess.json", crop_scale=9), "crop_scale: Input should be less than or equal to 4"),
        (change("threshold.json", threshold="high"), "no threshold can be read"),
        (
            lambda folder: (folder / "preprocess.json").write_text("{}"),
            "is not the file that bundle.json names",
        ),
        (lambda folder: (folder / "threshold.json").unlink(), "cannot be read (No such file or directory)"),
    ],
)
def test_a_broken_bundle_is_told_in_a_line(spoil: Callable[[Path], None], told: str, copied: Path) -> None:
    spoil(copied)
    with pytest.raises(WeightsError) as error:
        open_bundle(copied)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_graph_of_other_bytes_is_refused(copied: Path) -> None:
    with (copied / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match=r"is not the file that bundle\.json names"):
        open_graph(open_bundle(copied), "float32", "cpu", 1)


def test_a_graph_that_is_none_is_refused(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"no graph")
    seal(copied)
    with pytest.raises(WeightsError, match=r"model.onnx: cannot be opened \(.*\); export it again"):
        open_graph(open_bundle(copied), "float32", "cpu", 1)
