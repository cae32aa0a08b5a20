"""The main job on a real local Ray: two workers, a killed worker, a signal, another world size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dfdet.checkpoints import checkpoint
from dfdet.runs.runfolder import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EPOCHS, STEPS_PER_EPOCH = 4, 12


def command(sets: dict[str, Path], storage: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "ray_jobs/train.py", "demo"),
        *("--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}"),
        *("--data.test", f"t={sets['test']}", "--data.global_batch", "8"),
        *("--model.image_size", "32", "--optim.epochs", str(EPOCHS)),
        *("--engine.log_every", "1", "--engine.checkpoint_every", "5"),
        *("--run.storage", str(storage), "--run.name", "run", "--run.cpus_per_worker", "0.5"),
        *more,
    ]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


def result_of(storage: Path) -> dict[str, Any]:
    return json.loads((storage / "run/result.json").read_text())


def last_weights(storage: Path) -> dict[str, torch.Tensor]:
    folder = storage / "run/checkpoints"
    return checkpoint.load_tensors(
        folder / json.loads((folder / "last.json").read_text())["checkpoint"]
    ).trained


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[str], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    driver.kill()
    raise AssertionError("timed out: " + driver.communicate()[0])


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def at_step(storage: Path, step: int) -> Callable[[], bool]:
    metrics = storage / "run/metrics.jsonl"
    return lambda: any(record.get("step", 0) >= step for record in read_metrics(metrics))


def train_workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


@pytest.fixture(scope="module")
def uninterrupted(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        command(signal_sets, storage),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test/t/video/auroc = " in done.stdout
    return storage


def test_a_finished_run_prints_its_result_again(uninterrupted: Path, signal_sets: dict[str, Path]) -> None:
    again = subprocess.run(
        command(signal_sets, uninterrupted), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "already finished" in again.stdout


def test_a_killed_worker_changes_no_bit(
    uninterrupted: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(command(signal_sets, tmp_path))
    wait_for(at_step(tmp_path, STEPS_PER_EPOCH + 7), driver)
    killed = wait_for(lambda: train_workers(driver), driver)[0]
    killed.send_signal(signal.SIGKILL)
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    assert "resumed at step" in (tmp_path / "run/log.txt").read_text()
    assert result_of(tmp_path)["metrics"] == result_of(uninterrupted)["metrics"]
    for name, tensor in last_weights(uninterrupted).items():
        assert torch.equal(tensor, last_weights(tmp_path)[name])


def test_a_signal_leaves_a_checkpoint_that_one_worker_goes_on_from(
    uninterrupted: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(command(signal_sets, tmp_path))
    wait_for(at_step(tmp_path, 3), driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 143, output
    stopped = result_of(tmp_path)
    assert stopped["status"] == "stopped"
    assert stopped["step"] < EPOCHS * STEPS_PER_EPOCH

    alone = command(signal_sets, tmp_path, "--run.workers", "1")
    done = subprocess.run(alone, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed at step {stopped['step']} " in (tmp_path / "run/log.txt").read_text()
    losses = [
        [
            record["train/loss/total"]
            for record in read_metrics(storage / "run/metrics.jsonl")
            if "steps" in record
        ]
        for storage in (tmp_path, uninterrupted)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_failure_that_would_repeat_ends_the_run_with_one_line(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        command(
            signal_sets,
            tmp_path,
            "--optim.lr",
            "1",
            "--optim.schedule",
            "constant",
            "--model.scale",
            "256",
            "--model.head",
            "cosine",
            "--loss.ce",
            "3e38",
        ),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "non-finite" in line
    assert result_of(tmp_path)["status"] == "failed"
