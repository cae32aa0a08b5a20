"""Bad input to an export: exit code 2, one line, nothing left, no Ray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs import export

Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs the command line, sees that it is refused before any work, gives the line."""

    def no_work(*given: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(export, "write_bundle", no_work)
    before = sorted(tmp_path.iterdir())

    def line(checkpoint: Path | str, *more: str, out: Path = tmp_path / "out", left: bool = False) -> str:
        assert export.main(["--checkpoint", str(checkpoint), "--out", str(out), *more]) == 2
        printed = said()
        assert left or not out.exists()
        assert left or sorted(path for path in tmp_path.iterdir() if path.name.startswith(".")) == [
            path for path in before if path.name.startswith(".")
        ]
        return printed.removeprefix("error: ").strip()

    return line


@pytest.fixture
def copy(trained_run: Path, tmp_path: Path) -> Path:
    """The run's folder, to be spoilt."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def best(run: Path) -> Path:
    return run / "checkpoints" / json.loads((run / "checkpoints/best.json").read_text())["checkpoint"]


def test_a_checkpoint_that_is_not_there(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(tmp_path / "nowhere")
    assert "neither a checkpoint (no state.json) nor a run folder with one" in said


def test_a_run_before_its_first_checkpoint(refuse: Refuse, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    assert "neither a checkpoint" in refuse(copy)


@pytest.mark.parametrize("of", ["", "checkpoints"])
def test_a_run_that_goes_on_or_was_killed(of: str, refuse: Refuse, copy: Path) -> None:
    (copy / "result.json").unlink()
    said = refuse(copy / of)
    assert "the run is not finished (no result.json); train it to its end with the same --run.name" in said
    assert "--checkpoint " + str(max((copy / "checkpoints").glob("step_*"))) in said


def test_a_run_that_was_stopped(refuse: Refuse, copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, "status": "stopped"}))
    assert "the run is not finished (stopped)" in refuse(copy)


def test_a_checkpoint_without_a_threshold(refuse: Refuse, copy: Path) -> None:
    (best(copy) / "threshold.json").unlink()
    listing = json.loads((best(copy) / "checksums.json").read_text())
    del listing["files"]["threshold.json"]
    (best(copy) / "checksums.json").write_text(json.dumps(listing))
    said = refuse(copy)
    assert "has no threshold; fit one (python ray_jobs/evaluate.py --checkpoint" in said
    assert said.endswith("or export without it: --no-threshold")


def test_a_damaged_checkpoint(refuse: Refuse, copy: Path) -> None:
    with (best(copy) / "trained.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"oops")
    assert "trained.safetensors fails its checksum" in refuse(copy)


def test_a_foreign_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"not tensors")
    assert "weights.bin" in refuse(tmp_path / "weights.bin")


def test_a_folder_that_holds_something(refuse: Refuse, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("kept")
    said = refuse(trained_run, left=True)
    assert said.endswith("exists and is not empty; give another --out, or remove it")
    assert (tmp_path / "out" / "theirs").read_text() == "kept"


def test_a_place_that_cannot_be_written(refuse: Refuse, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refuse(trained_run, out=tmp_path / "file" / "out")
    assert said.endswith("cannot be written (Not a directory); give a writable folder")


def test_a_validation_set_that_is_not_there(refuse: Refuse, trained_run: Path, tmp_path: Path) -> None:
    assert "no such manifest" in refuse(trained_run, "--val", f"v={tmp_path / 'none.json'}")


@pytest.mark.parametrize("entry", ["v", "v=", "=set.json"])
def test_a_validation_set_without_name_or_path(entry: str, refuse: Refuse, trained_run: Path) -> None:
    assert refuse(trained_run, "--val", entry).endswith("give NAME=SET.json, as ffpp=shards/ffpp-val.json")


def test_a_validation_set_that_was_cut_otherwise(
    refuse: Refuse, trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(signal_sets["val"].parent, tmp_path / "sets"))
    manifest = json.loads((folder / "val.json").read_text())
    manifest["crop"]["template"] = "gend"
    (folder / "val.json").write_text(json.dumps(manifest))
    said = refuse(trained_run, "--val", f"v={folder / 'val.json'}")
    assert "aligned to template 'gend', those of training to 'demo'; give a set that was cut alike" in said


def test_a_tower_that_hugging_face_has_no_layout_for(refuse: Refuse, trained_run: Path) -> None:
    said = refuse(trained_run, "--hugging_face")
    assert said.startswith("--hugging_face: tiny is no CLIP tower of open_clip")
    assert said.endswith("leave the flag out")


@pytest.mark.parametrize("content", [None, "{}", "[]", '{"checkpoints": {"a": {"fingerprint": "other"}}}'])
def test_an_evaluation_that_is_not_of_this_checkpoint(
    content: str | None, refuse: Refuse, trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "evaluation").mkdir()
    if content is not None:
        (tmp_path / "evaluation" / "result.json").write_text(content)
    said = refuse(trained_run, "--evaluation", str(tmp_path / "evaluation"))
    assert said.startswith(f"--evaluation {tmp_path / 'evaluation'}: ")


@pytest.mark.parametrize(
    "more", [["--bound", "0"], ["--precisions", "int4"], ["--crops", "0"], ["--vall", "x"]]
)
def test_a_flag_out_of_range(more: list[str], refuse: Refuse, trained_run: Path, tmp_path: Path) -> None:
    said = refuse(trained_run, *more)
    assert more[0].strip("-") in said
    assert not (tmp_path / "out").exists()
