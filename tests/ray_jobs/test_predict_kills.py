"""Prediction on a real local Ray while workers are killed, and when it is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.ray_jobs.predicting import write_checkpoint, write_detector, write_set

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
FILES = 16
FRAMES = 24
LINES = "predictions.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint, sixteen clips, and what one process that nothing happens to says of them."""
    folder = tmp_path_factory.mktemp("kills")
    weights = write_detector(folder)
    checkpoint = write_checkpoint(folder / "runs", write_set(folder, weights))
    for number in range(4, FILES):
        shutil.copy(folder / "raw" / f"{number % 4}.mp4", folder / "raw" / f"{number}.mp4")
    found = SimpleNamespace(folder=folder, weights=weights, checkpoint=checkpoint)
    code, told = ended(start(found, folder / "whole", workers=0))
    assert code == 0, told
    found.whole = (folder / "whole" / LINES).read_bytes()
    return found


def start(made: SimpleNamespace, out: Path, workers: int = 2) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    options = {
        "checkpoint": made.checkpoint,
        "weights": made.weights,
        "frames": FRAMES,
        "threads": 1,
        "out": out,
        "workers": workers,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "ray_jobs/predict.py", str(made.folder / "raw" / "*.mp4"), *flags],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = driver.communicate(timeout=200)
    return driver.returncode, told


def wait_for(driver: subprocess.Popen[str], condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if found := condition():
            return found
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.01)
    driver.kill()
    raise AssertionError("timed out: " + driver.communicate()[0])


def has_lines(out: Path, count: int) -> Callable[[], bool]:
    return lambda: (out / LINES).exists() and (out / LINES).read_bytes().count(b"\n") >= count


def at_work(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Worker processes that are predicting on a file now."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::predict" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_worker_loses_no_file_and_repeats_none(made: SimpleNamespace, tmp_path: Path) -> None:
    driver = start(made, tmp_path)
    wait_for(driver, has_lines(tmp_path, 2))
    killed = wait_for(driver, lambda: at_work(driver))[0]
    killed.send_signal(signal.SIGKILL)
    before = (tmp_path / LINES).read_bytes().count(b"\n")
    assert before < FILES  # in the middle
    code, told = ended(driver)
    assert code == 0, told
    assert f"files: {FILES} of {FILES}" in told
    assert (tmp_path / LINES).read_bytes() == made.whole


def test_sigterm_exits_with_143_and_the_same_command_goes_on(made: SimpleNamespace, tmp_path: Path) -> None:
    driver = start(made, tmp_path)
    wait_for(driver, has_lines(tmp_path, 3))
    driver.send_signal(signal.SIGTERM)
    code, told = ended(driver)
    assert code == 143, told
    done = [json.loads(line)["path"] for line in (tmp_path / LINES).read_text().splitlines()]
    assert 3 <= len(done) == len(set(done)) < FILES

    code, told = ended(start(made, tmp_path))
    assert code == 0, told
    left = FILES - len(done)
    assert f"files: {left} of {left}" in told
    assert (tmp_path / LINES).read_bytes() == made.whole
