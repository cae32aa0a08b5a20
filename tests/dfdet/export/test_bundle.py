"""A bundle holds what the contract says, scores as its checkpoint, and is the same each time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.config import from_json
from dfdet.data.index import open_sets
from dfdet.errors import InputError
from dfdet.evaluation.threshold import read as read_threshold
from dfdet.export import bundle as bundles
from dfdet.export import crops
from dfdet.export.bundle import ParityError, own_score
from dfdet.export.onnx_file import OnnxScorer
from dfdet.export.program import load_program
from dfdet.export.request import Options, open_request, own_set
from dfdet.export.verify import verify
from tests.dfdet.export.bundles import exported, tree
from tests.dfdet.export.clips import QUICK

ALWAYS = {
    "MODEL_CARD.md",
    "SHA256SUMS",
    "bundle.json",
    "config.json",
    "example.py",
    "model.onnx",
    "model.pt2",
    "model.safetensors",
    "parity.json",
    "preprocess.json",
}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def val_crops(sets: dict[str, Path], count: int = 24) -> crops.Crops:
    return crops.from_set("v", open_sets([sets["val"]]), 1.3, count)


def test_a_bundle_has_the_files_of_the_contract(bundle: Path) -> None:
    lower = {"model-int8.onnx", "model-bfloat16.pt2"}
    triton = {"kserve.yaml", "triton/run/config.pbtxt", "triton/run/1/model.onnx"}
    assert set(tree(bundle)) == ALWAYS | {"threshold.json"} | lower | triton


def test_every_graph_scores_as_the_checkpoint(
    bundle: Path, trained_run: Path, signal_sets: dict[str, Path]
) -> None:
    request = open_request(Options(checkpoint=str(trained_run), out=str(bundle.parent / "none")))
    images = np.stack(val_crops(signal_sets).images)
    scores, logits = own_score(request)(images)
    assert scores.std() > 0.02
    graph = OnnxScorer(bundle / "model.onnx")(images)
    with torch.no_grad():
        program = load_program(bundle / "model.pt2", "cpu")(torch.from_numpy(images))
    for found in (graph, [each.numpy() for each in program]):
        np.testing.assert_allclose(found[0], scores, atol=1e-5)
        np.testing.assert_allclose(found[1], logits, atol=1e-4)


def test_parity_is_told_of_every_graph(bundle: Path, signal_sets: dict[str, Path]) -> None:
    parity = read_json(bundle / "parity.json")
    assert parity["crops"] == 24
    assert parity["set"] == "v"
    assert parity["set_fingerprint"] == open_sets([signal_sets["val"]]).digest
    assert parity["checkpoint"]["precision"] == "fp32"
    precisions = {name: entry["precision"] for name, entry in parity["files"].items()}
    assert precisions == {
        "model.onnx": "float32",
        "model.pt2": "float32",
        "model-int8.onnx": "int8",
        "model-bfloat16.pt2": "bfloat16",
    }
    for name in ("model.onnx", "model.pt2"):
        assert parity["files"][name]["max_score_difference"] < 1e-5
        assert parity["files"][name]["same_ranking"] is True
        assert parity["files"][name]["auroc_change"] == 0
        assert parity["files"][name]["forced"] is False


def test_what_describes_the_input_is_that_of_training(bundle: Path, trained_run: Path) -> None:
    opened = open_checkpoint(str(trained_run))
    recipe = read_json(bundle / "preprocess.json")
    assert recipe["crop"] == opened.crop.model_dump(mode="json")
    assert recipe["crop_scale"] == 1.3
    assert recipe["input"] == {"name": "crops", "dtype": "uint8", "layout": "NHWC", "colour": "RGB"}
    assert recipe["image_size"] == 32
    assert recipe["mean"] == [0.5, 0.5, 0.5]
    assert recipe["interpolation"] == "bicubic"
    assert read_threshold(bundle / "threshold.json") == opened.threshold


def test_the_config_names_no_folder_of_this_machine(bundle: Path, trained_run: Path) -> None:
    config, original = from_json(bundle / "config.json"), from_json(trained_run / "config.json")
    assert config.optim == original.optim
    assert config.model == original.model
    assert config.data.train == ("train.json",)
    assert config.data.val == ("v=val.json",)
    assert config.run.storage == "runs"


def test_no_file_holds_a_path_of_this_machine(bundle: Path, clip_bundle: Path, trained_run: Path) -> None:
    home = str(trained_run.parents[1]).encode()
    for folder in (bundle, clip_bundle):
        assert [name for name, data in tree(folder).items() if home in data] == []


def test_the_listing_has_every_file_and_what_made_it(bundle: Path, trained_run: Path) -> None:
    listing = read_json(bundle / "bundle.json")
    assert set(listing["files"]) == set(tree(bundle)) - {"bundle.json", "SHA256SUMS"}
    assert listing["files"]["config.json"]["bytes"] == (bundle / "config.json").stat().st_size
    assert listing["fingerprint"] == open_checkpoint(str(trained_run)).fingerprint
    assert listing["kind"] == "dfdet-detector"
    assert {"dfdet", "torch", "onnx", "onnxruntime"} < set(listing["versions"])


def test_a_bundle_passes_its_own_check(bundle: Path, clip_bundle: Path) -> None:
    assert verify(bundle)[0] == f"run: {len(tree(bundle)) - 1} files, checksums agree"
    assert verify(clip_bundle)[2] == "graphs that load and score: model.onnx"


def copied(bundle: Path, to: Path) -> Path:
    for name, data in tree(bundle).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json was changed"),
        (lambda folder: (folder / "model.pt2").unlink(), "model.pt2 is missing"),
        (lambda folder: (folder / "more").write_text("x"), "more is not in SHA256SUMS"),
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle"),
        (lambda folder: (folder / "SHA256SUMS").write_text("x\n"), "is no checksum"),
    ],
)
def test_a_bundle_that_was_changed_is_found(spoil, told: str, clip_bundle: Path, tmp_path: Path) -> None:
    folder = copied(clip_bundle, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(InputError, match=told):
        verify(folder)


def test_the_command_that_checks_a_bundle(clip_bundle: Path, tmp_path: Path) -> None:
    from dfdet.export.__main__ import main

    assert main([str(clip_bundle)]) == 0
    assert main([str(tmp_path)]) == 2


def test_two_exports_are_equal_to_the_byte(clip_run: Path, clip_bundle: Path, tmp_path: Path) -> None:
    again = exported(clip_run, tmp_path / "again", hugging_face=True, crops=24)
    first, second = tree(clip_bundle), tree(again)
    assert list(first) and first.keys() == second.keys()
    assert [name for name, data in first.items() if second[name] != data] == []


def test_the_delta_makes_the_detector_of_its_backbone(clip_bundle: Path, clip_run: Path) -> None:
    delta = load_file(clip_bundle / "delta.safetensors")
    whole = load_file(clip_bundle / "model.safetensors")
    opened = open_checkpoint(str(clip_run))
    assert set(delta) == set(opened.detector.trainable())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in delta.items())
    public = load_file(clip_run.parent / "clip.safetensors")
    rest = {name: tensor for name, tensor in whole.items() if name not in delta}
    assert all(
        torch.equal(tensor, public[name.removeprefix("tower.visual.")]) for name, tensor in rest.items()
    )
    with safe_open(clip_bundle / "delta.safetensors", framework="pt") as file:
        about = file.metadata()
    assert (about["backbone"], about["pretrained"]) == (QUICK, "clip.safetensors")
    assert about["frozen_sha256"] == read_json(opened.folder / "backbone.json")["frozen_sha256"]


def test_a_random_tower_has_no_delta_and_says_so(bundle: Path) -> None:
    assert not (bundle / "delta.safetensors").exists()
    assert any("no delta.safetensors" in note for note in read_json(bundle / "bundle.json")["notes"])


def test_a_detector_trained_in_bfloat16_tells_what_that_cost(clip_bundle: Path) -> None:
    checkpoint = read_json(clip_bundle / "parity.json")["checkpoint"]
    assert checkpoint["precision"] == "bf16"
    assert 0 < checkpoint["max_score_difference"] < 0.1


def test_open_clip_loads_the_tower_as_the_card_says(
    clip_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (clip_bundle / "MODEL_CARD.md").read_text()
    code = next(part.split("```")[0] for part in card.split("```python\n")[1:] if "open_clip" in part)
    monkeypatch.chdir(clip_bundle)
    scope: dict = {}
    exec(code, scope)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    opened = open_checkpoint(str(clip_bundle / "huggingface")).detector
    with torch.no_grad():
        torch.testing.assert_close(scope["visual"].eval()(images), opened(images), rtol=0, atol=1e-4)
    assert isinstance(scope["visual"], open_clip.transformer.VisionTransformer)


def test_a_published_file_is_exported_too(clip_bundle: Path, tmp_path: Path) -> None:
    out = exported(clip_bundle / "huggingface", tmp_path / "out", threshold=False, crops=3)
    assert set(tree(out)) == ALWAYS
    parity = read_json(out / "parity.json")
    assert (parity["set"], parity["set_fingerprint"]) == ("synthetic", None)
    assert any("synthetic" in note for note in read_json(out / "bundle.json")["notes"])
    assert "3 synthetic crops" in (out / "MODEL_CARD.md").read_text()


def test_a_validation_set_that_is_gone_gives_way_to_synthetic_crops(clip_run: Path) -> None:
    opened = open_checkpoint(str(clip_run))
    gone = opened.config.replace({"data.val": ("v=gone.json",)})
    notes: list[str] = []
    assert own_set(replace(opened, config=gone), notes) is None
    assert notes == [
        "The run's validation set v could not be read: the graphs were compared on synthetic crops."
    ]


def test_a_graph_that_disagrees_ends_the_export_and_leaves_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bundles.export_onnx

    def wrong(model, path, *, precision):  # a real graph, of another head
        with torch.no_grad():
            model.head.linear.weight[1].add_(0.05)
            whole(model, path, precision=precision)
            model.head.linear.weight[1].sub_(0.05)

    monkeypatch.setattr(bundles, "export_onnx", wrong)
    monkeypatch.setattr(bundles, "PROGRAMS", {})
    with pytest.raises(ParityError, match=r"^model\.onnx: "):
        exported(trained_run, tmp_path / "out", crops=8, force=True)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_costs_too_much_is_refused(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "ONNX", {})
    with pytest.raises(ParityError, match=r"^model-bfloat16\.pt2: .*with --bound 1e-09.*--force"):
        exported(trained_run, tmp_path / "out", precisions=("bfloat16",), bound=1e-9, crops=8)
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_forced_is_told_everywhere(bundle: Path) -> None:
    files = read_json(bundle / "parity.json")["files"]
    assert {name for name, entry in files.items() if entry["forced"]} >= {"model-bfloat16.pt2"}
    assert files["model-bfloat16.pt2"]["max_score_difference"] > 1e-7
    told = re.search(r"\*\*Forced\*\*: (.*) cost more", (bundle / "MODEL_CARD.md").read_text())
    assert told and "model-bfloat16.pt2" in told[1]
    assert "model-bfloat16.pt2 was forced past the bound." in read_json(bundle / "bundle.json")["notes"]
