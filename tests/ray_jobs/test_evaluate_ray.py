"""An evaluation on a real local Ray: any number of workers, killed ones among them, gives the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dfdet.evaluation.scored import read

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def start(run: Path, sets: dict[str, Path], out: Path, *more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [
            *(sys.executable, "ray_jobs/evaluate.py", "--checkpoint", str(run), "--out", str(out)),
            *("--val", f"v={sets['val']}", "--test", f"t={sets['test']}", "--robustness", "jpeg-40"),
            *("--batch", "2", "--resamples", "200", "--cpus_per_worker", "0.5", *more),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_a_worker(driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ScoringActor" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.05)
    raise AssertionError("no worker was started")


def test_three_workers_one_of_them_killed_score_as_one_does(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    one = start(trained_run, signal_sets, tmp_path / "one", "--workers", "1")
    output, _ = one.communicate(timeout=200)
    assert one.returncode == 0, output
    assert "threshold" in output

    three = start(trained_run, signal_sets, tmp_path / "three", "--workers", "3")
    kill_a_worker(three)
    output, _ = three.communicate(timeout=200)
    assert three.returncode == 0, output

    for name in ("val-v", "test-t", "test-t@jpeg-40"):
        first, second = (read(tmp_path / out / "scores/run" / f"{name}.parquet") for out in ("one", "three"))
        assert first.frames.equals(second.frames)
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "three")]
    assert results[0]["metrics"] == results[1]["metrics"]
    trained = json.loads((trained_run / "result.json").read_text())["metrics"]
    assert results[0]["metrics"]["test/t/video/auroc"] == trained["test/t/video/auroc"]

    again = start(trained_run, signal_sets, tmp_path / "one", "--workers", "1")
    output, _ = again.communicate(timeout=100)
    assert (again.returncode, "already finished" in output) == (0, True)
