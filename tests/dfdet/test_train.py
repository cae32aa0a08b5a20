"""The whole job without Ray: learns, resumes at the exact batch, stops when asked, refuses other data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dfdet.checkpoints import checkpoint
from dfdet.context import LocalContext
from dfdet.errors import ShardSetError, TrainingError
from dfdet.runs.runfolder import RunFolder, read_metrics
from dfdet.train import train
from tests.group import run_group
from tests.signal_runs import config_for, run


def weights(storage: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    folder = storage / "run" / "checkpoints"
    name = (
        checkpoint.step_name(step)
        if step is not None
        else json.loads((folder / "last.json").read_text())["checkpoint"]
    )
    return checkpoint.load_tensors(folder / name).trained


def without_speed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.startswith("perf/")} for record in metrics]


@pytest.fixture(scope="module")
def uninterrupted(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    storage = tmp_path_factory.mktemp("whole")
    return storage, run(config_for(signal_sets, storage))


def test_it_learns_and_leaves_what_the_contract_names(uninterrupted: tuple[Path, Any]) -> None:
    storage, result = uninterrupted
    folder = storage / "run"
    assert result["status"] == "finished"
    assert result["metrics"]["test/t/video/auroc"] > 0.9
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]
    best = folder / "checkpoints" / json.loads((folder / "checkpoints/best.json").read_text())["checkpoint"]
    assert {path.name for path in best.iterdir()} >= {
        "trained.safetensors",
        "optimizer.safetensors",
        "state.json",
        "config.json",
        "crop.json",
        "backbone.json",
        "frozen.safetensors",
        "threshold.json",
    }
    assert {path.name for path in (folder / "plots").iterdir()} >= {"loss.png", "metrics.png", "scores-t.png"}
    assert (folder / "metrics.jsonl").exists()


def test_the_same_config_gives_the_same_bits(
    uninterrupted: tuple[Path, Any], signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    storage, result = uninterrupted
    again = run(config_for(signal_sets, tmp_path))
    assert again["metrics"] == result["metrics"]
    for name, tensor in weights(storage).items():
        assert torch.equal(tensor, weights(tmp_path)[name])


KILLED = """
import os, sys
from pathlib import Path
from dfdet.config import from_json
from dfdet import train as job
from dfdet.training.engine import TrainEngine
from tests.dfdet.test_train import run
step, seen = TrainEngine.step, []
def counted(self, *args):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    return step(self, *args)
TrainEngine.step = counted
run(from_json(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("steps", [4, 8])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    uninterrupted: tuple[Path, Any], signal_sets: dict[str, Path], tmp_path: Path, steps: int
) -> None:
    storage, result = uninterrupted
    config = config_for(signal_sets, tmp_path)
    (tmp_path / "config.json").write_text(config.to_json())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(steps)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    again = run(config)
    assert again["metrics"] == result["metrics"]
    for name, tensor in weights(storage).items():
        assert torch.equal(tensor, weights(tmp_path)[name])
    assert without_speed(read_metrics(tmp_path / "run/metrics.jsonl")) == without_speed(
        read_metrics(storage / "run/metrics.jsonl")
    )


def test_a_stop_request_leaves_a_checkpoint_and_the_rest_follows(
    uninterrupted: tuple[Path, Any],
    signal_sets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_for(signal_sets, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "stop_requested", lambda self: "SIGINT")
        stopped = run(config)
    assert (stopped["status"], stopped["step"]) == ("stopped", 2)
    assert run(config)["metrics"] == uninterrupted[1]["metrics"]


def _rank(rank: int, world: int, config_json: str, stop_after: bool) -> dict[str, Any]:
    import dfdet.train as job
    from dfdet.config import from_dict

    config = from_dict(json.loads(config_json))
    folder = RunFolder(Path(config.run.storage) / "run")
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    folder.plots.mkdir(exist_ok=True)
    if stop_after and rank == 0:
        folder.request_stop("test")
    seen: list[list[int]] = []
    step = job.TrainEngine.step

    def recorded(self: Any, batch: Any, *args: Any) -> Any:
        seen.append(batch.ids.tolist())
        return step(self, batch, *args)

    job.TrainEngine.step = recorded  # type: ignore[method-assign]
    result = train(config, LocalContext(folder))
    (folder.path / "stop").unlink(missing_ok=True)
    return {"seen": seen, "metrics": result["metrics"], "step": result["step"]}


def test_two_ranks_begin_and_one_goes_on_with_the_same_batches(
    uninterrupted: tuple[Path, Any], signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    alone = run_group(1, _rank, config_for(signal_sets, tmp_path / "a").to_json(), False)[0]
    config = config_for(signal_sets, tmp_path / "b").to_json()
    first = run_group(2, _rank, config, True)
    rest = run_group(1, _rank, config, False)[0]
    assert first[0]["step"] == 2
    together = [a + b for a, b in zip(first[0]["seen"], first[1]["seen"], strict=True)]
    assert together + rest["seen"] == alone["seen"]
    assert rest["metrics"]["test/t/video/auroc"] == pytest.approx(
        alone["metrics"]["test/t/video/auroc"], abs=0.02
    )


def test_other_data_is_refused(signal_sets: dict[str, Path], tmp_path: Path) -> None:
    config = config_for(signal_sets, tmp_path, **{"optim.epochs": 1})
    run(config)
    (tmp_path / "run/result.json").unlink()
    other = config.replace({"data.train": (str(signal_sets["val"]),), "data.global_batch": 16})
    (tmp_path / "run/config.json").write_text(other.to_json())
    with pytest.raises(ShardSetError, match="not the data or order"):
        run(other)


def test_non_finite_steps_past_the_bound_stop_the_run(
    signal_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfdet.model.heads import LinearHead

    forward = LinearHead.forward
    monkeypatch.setattr(LinearHead, "forward", lambda *args: forward(*args) * float("inf"))
    with pytest.raises(TrainingError, match="non-finite"):
        run(config_for(signal_sets, tmp_path, **{"data.val": (), "data.test": ()}))
