"""The model card tells what was trained on what, how well it does, and where it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.data.index import open_sets
from dfdet.export import card
from dfdet.export.graph import deployed
from dfdet.export.request import Options, open_request

SECTIONS = [
    "What it is",
    "Intended use",
    "Out of scope, and limits",
    "Training data",
    "Recipe",
    "Measured",
    "Threshold",
    "Precision",
    "How to use",
    "Versions",
    "Checksums",
]


@pytest.fixture(scope="module")
def text(clip_bundle: Path) -> str:
    return (clip_bundle / "MODEL_CARD.md").read_text()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_it_has_all_sections(text: str) -> None:
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS


def test_its_header_is_one_of_the_hub_and_leaves_the_licence_open(text: str) -> None:
    header = yaml.safe_load(text.split("---\n")[1])
    assert "license" not in header
    assert "deepfake-detection" in header["tags"]
    assert header["metrics"] == ["roc_auc", "average_precision"]
    assert header["pipeline_tag"] == "image-classification"
    assert "base_model" not in header


def test_it_names_the_training_sets_with_their_fingerprints(text: str, signal_sets: dict[str, Path]) -> None:
    told = section(text, "Training data")
    manifest = json.loads(signal_sets["train"].read_text())
    row = "| train | train | signal | 144 | 48 | 96 | dim 48, real 48, tint 48 |"
    assert f"{row} `{manifest['index']['sha256'][:16]}` |" in told
    assert "template demo, scale 1.6, size_px 48" in told
    assert open_sets([signal_sets["val"]]).digest not in told  # a digest over sets, not an index's


def test_it_tells_the_recipe_and_the_step(text: str, clip_run: Path) -> None:
    told = section(text, "Recipe")
    assert '| `tuning.mode` | "ln" |' in told
    assert "| `optim.lr` | 0.02 |" in told
    step = json.loads((clip_run / "result.json").read_text())["step"]
    assert f"checkpoint of step {step}, chosen by the run that ended" in told


def test_it_has_the_metrics_of_the_run(text: str, clip_run: Path) -> None:
    metrics = json.loads((clip_run / "result.json").read_text())["metrics"]
    auroc, ap = (metrics[f"test/t/video/{name}"] for name in ("auroc", "ap"))
    assert f"| `test/t/video` | {auroc:.4f} | {ap:.4f} |" in section(text, "Measured")


def test_it_has_the_intervals_of_an_evaluation(clip_run: Path, evaluation: Path, tmp_path: Path) -> None:
    asked = Options(checkpoint=str(clip_run), out=str(tmp_path / "out"), evaluation=str(evaluation))
    request = open_request(asked)
    parity = {"crops": 1, "set": "v", "set_fingerprint": "x", "bound": 1, "files": {}}
    figures = {"max_score_difference": 0, "max_logit_difference": 0, "same_ranking": True}
    own = {"precision": "fp32", **figures, "auroc": None, "auroc_change": None}
    told = section(card.write(request, deployed(request.opened), {**parity, "checkpoint": own}), "Measured")
    metrics = json.loads((evaluation / "result.json").read_text())["metrics"]
    value, low, high = (metrics[f"test/t/frame/auroc{end}"] for end in ("", "_low", "_high"))
    assert low < value
    assert f"| `test/t/frame` | {value:.4f} ({low:.3f} to {high:.3f}) |" in told
    assert "| `test/t/video/auroc/dim` |" in told


def test_the_threshold_has_its_origin(text: str, clip_run: Path) -> None:
    fitted = open_checkpoint(str(clip_run)).threshold
    assert fitted is not None
    told = section(text, "Threshold")
    assert f"A score of {fitted.threshold:.6f} or more says fake" in told
    assert "of videos of the validation set v (72 frames" in told
    assert fitted.set_fingerprint[:16] in told


def test_the_precision_table_has_every_file(text: str, bundle: Path) -> None:
    told = section(text, "Precision")
    assert "On 24 crops of v, against the float32 model" in told
    assert "| `model.onnx` | float32 |" in told
    assert "| `huggingface/model.safetensors` | float32 |" in told
    assert "| the checkpoint as it was evaluated | bf16 |" in told
    other = (bundle / "MODEL_CARD.md").read_text()
    assert "| `model-int8.onnx` | int8 |" in section(other, "Precision")


def test_no_time_and_no_path_is_in_it(text: str, clip_run: Path) -> None:
    assert str(clip_run.parents[1]) not in text
    assert not re.search(r"\d\d:\d\d", text)


def test_only_clip_towers_are_told_how_open_clip_loads_them(text: str, bundle: Path) -> None:
    assert 'open_clip.create_model("tiny-export-quickgelu")' in text
    assert "open_clip.create_model" not in (bundle / "MODEL_CARD.md").read_text()
