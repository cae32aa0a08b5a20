"""Bad input to a training; see conftest for what is expected of every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import save_file

from dfdet.cli import parse
from dfdet.config import Model, from_json
from dfdet.model.backbone import build_tower
from dfdet.runs.runfolder import RunFolder
from ray_jobs.preflight import with_absolute_paths
from ray_jobs.train import main
from tests.ray_jobs.bad_input.asked import Refuse, arguments


@pytest.fixture(name="main")
def job():
    return main


def test_a_set_that_is_not_there(refuse: Refuse, tmp_path: Path) -> None:
    missing = tmp_path / "none" / "set.json"
    assert refuse("--data.train", str(missing)) == (
        f"{missing}: no such manifest: the set is unfinished or the path wrong;"
        " build it with ray_jobs/shard.py or python -m shards"
    )


def test_a_run_without_a_training_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gend", "--run.storage", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data.train is empty: no training set; give --data.train SET.json")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_unfinished_set(split: str, refuse: Refuse, sets: dict[str, Path]) -> None:
    sets[split].unlink()
    said = refuse()
    assert said.startswith(f"{sets[split]}: no such manifest: the set is unfinished")
    assert "build it with" in said


def test_a_manifest_that_was_cut_short(refuse: Refuse, sets: dict[str, Path]) -> None:
    sets["train"].write_bytes(sets["train"].read_bytes()[:100])
    said = refuse()
    assert said.startswith(f"{sets['train']}: no valid manifest (")
    assert said.endswith("again")


def test_an_index_of_other_data(refuse: Refuse, sets: dict[str, Path]) -> None:
    index = {split: index_of(path) for split, path in sets.items()}
    shutil.copyfile(index["val"], index["train"])
    said = refuse()
    assert said.startswith(f"{index['train']}: index of other data: its SHA-256 is not the one in train.json")
    assert "copy index, tars and manifest of one set" in said


def test_an_index_that_is_missing(refuse: Refuse, sets: dict[str, Path]) -> None:
    index_of(sets["train"]).unlink()
    assert refuse().startswith(f"{index_of(sets['train'])}: index cannot be read (No such file")


def test_a_truncated_tar(refuse: Refuse, sets: dict[str, Path]) -> None:
    tar = sets["train"].parent / json.loads(sets["train"].read_text())["shards"][0]["file"]
    size = tar.stat().st_size
    with tar.open("r+b") as file:
        file.truncate(size - 512)
    said = refuse()
    assert said.startswith(f"{tar}: {size - 512} bytes, but train.json says {size}: truncated")
    assert "copy the set again" in said


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gendd"]) == 2
    assert capsys.readouterr().err == (
        "error: recipe 'gendd': unknown; did you mean gend?"
        " there are demo, linear_probe, ln, ln_norm, paper, gend, temporal\n"
    )


def test_an_unknown_field(refuse: Refuse) -> None:
    assert refuse("--optim.l", "1") == "--optim.l: no such field; did you mean --optim.lr?"


def test_a_global_batch_that_does_not_divide(refuse: Refuse) -> None:
    assert refuse("--data.global_batch", "15") == (
        "data.global_batch=15: not divisible by run.workers=2 x 2 (data.sampling=rotate keeps pairs on one"
        " rank); set --data.global_batch 12"
    )


def test_a_micro_batch_smaller_than_a_pair(refuse: Refuse) -> None:
    assert refuse("--engine.micro_batch", "1").endswith("set --engine.micro_batch 2")


def test_more_workers_than_cpus(refuse: Refuse) -> None:
    assert refuse("--run.workers", "4") == (
        "run.workers=4: 4 x 1 CPU = 4, but Ray has 2 CPU; set --run.workers 2 or --run.cpus_per_worker 0.5"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is to be missing")
def test_cuda_on_a_machine_without(refuse: Refuse) -> None:
    assert refuse("--run.device", "cuda") == (
        "run.workers=2: 2 x 1 GPU = 2, but Ray has 0 GPU; set --run.device cpu"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ViT-L14-quickgelu", "ViT-L-14-quickgelu"),
        ("timm/vit_tinny_patch16_224", "timm/vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_backbone_lists_the_nearest(name: str, near: str, refuse: Refuse) -> None:
    said = refuse("--model.backbone", name)
    assert said.startswith(f"model.backbone={name}: no such model; the nearest are ")
    listed = said.partition("nearest are ")[2].split(", ")
    assert near in listed
    assert 1 < len(listed) <= 5


def test_an_unknown_tag_lists_the_backbones(refuse: Refuse) -> None:
    said = refuse("--model.backbone", "ViT-B-32", "--model.pretrained", "opnai")
    assert "model.pretrained=opnai" in said
    assert "openai" in said


def test_a_pretrained_file_of_another_model(refuse: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    tower = build_tower(Model(backbone="tiny", pretrained=None, image_size=32), seed=0)[0].state_dict()
    other = {name: tensor.contiguous() for name, tensor in tower.items() if name != "ln_pre.bias"}
    save_file(other | {"surplus.weight": torch.zeros(2)}, file)
    said = refuse("--model.pretrained", str(file))
    assert said.startswith(f"model.pretrained={file}: does not fit the model: ")
    assert "1 missing (ln_pre.bias); 1 unexpected (surplus.weight)" in said
    assert "give weights of this model" in said


def test_a_pretrained_file_of_another_timm_model(refuse: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(2)}, file)
    said = refuse("--model.backbone", "timm/vit_tiny_patch16_224", "--model.pretrained", str(file))
    assert "missing (cls_token, pos_embed, patch_embed.proj.weight, ...)" in said
    assert "1 unexpected (stem.weight)" in said


def test_a_pretrained_file_that_is_damaged(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    said = refuse("--model.pretrained", str(tmp_path / "w.safetensors"))
    assert said.startswith(f"model.pretrained={tmp_path / 'w.safetensors'}: cannot be read as plain tensors")


def test_a_pretrained_file_that_is_missing(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse("--model.pretrained", str(tmp_path / "w.pt"))
    assert f"model.pretrained={tmp_path / 'w.pt'}: " in said
    assert "no such file" in said


def test_storage_that_cannot_be_written(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refuse("--run.storage", str(tmp_path / "file" / "runs"))
    assert said == (
        f"run folder {tmp_path}/file/runs/run: cannot be written (Not a directory);"
        " give a writable --run.storage"
    )
    assert (tmp_path / "file").read_text() == "in the way"


def test_storage_that_only_reads(refuse: Refuse) -> None:
    assert "http://127.0.0.1/runs" in refuse("--run.storage", "http://127.0.0.1/runs")


@pytest.fixture
def begun(sets: dict[str, Path], tmp_path: Path) -> RunFolder:
    """A run with a checkpoint, that nobody owns any more."""
    config = with_absolute_paths(parse(arguments(sets, tmp_path / "runs"), prog="train.py"))
    folder, status = RunFolder.claim(tmp_path / "runs", "run", config)
    assert status == "new"
    (folder.checkpoints / "step_00000002").mkdir()
    folder.release()
    return folder


def test_a_resume_under_another_config_shows_the_difference(begun: RunFolder, refuse: Refuse) -> None:
    before = begun.config_json.read_bytes()
    assert refuse("--optim.lr", "0.01", "--run.seed", "7", begun=True) == (
        f"run folder {begun.path}: holds a run with another config (run.seed: 0 -> 7;"
        " optim.lr: 0.02 -> 0.01); give the old values, or another --run.name"
    )
    assert begun.config_json.read_bytes() == before


def test_a_finished_run_is_not_given_for_another_config(begun: RunFolder, refuse: Refuse) -> None:
    begun.write_result({"status": "finished", "metrics": {}})
    assert "optim.epochs: 10 -> 11" in refuse("--optim.epochs", "11", begun=True)


def test_a_run_that_is_refused_can_be_taken_up_again(begun: RunFolder, refuse: Refuse) -> None:
    refuse("--optim.lr", "0.01", begun=True)
    config = from_json(begun.config_json)
    folder, status = RunFolder.claim(begun.path.parent, "run", config.replace({"run.workers": 1}))
    folder.release()
    assert status == "resume"


def test_a_finished_run_gives_its_result_again_without_ray(
    begun: RunFolder, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.write_result({"status": "finished", "metrics": {"test/t/video/auroc": 0.987654}})
    assert main(arguments(sets, tmp_path / "runs")) == 0
    printed = capsys.readouterr()
    assert (printed.err, ray.is_initialized()) == ("", False)
    assert "already finished" in printed.out
    assert "test/t/video/auroc = 0.9877" in printed.out


def index_of(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text())["index"]["file"]
