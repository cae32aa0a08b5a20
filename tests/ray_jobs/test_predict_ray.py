"""Prediction on a real local Ray gives what one process gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_jobs.predicting import write_checkpoint, write_detector, write_set

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def predict(*words: object) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "ray_jobs/predict.py", *map(str, words)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    weights = write_detector(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "runs", write_set(tmp_path, weights))
    (tmp_path / "raw" / "1b.mp4").write_text("no video")
    shutil.copy(tmp_path / "raw" / "0.mp4", tmp_path / "raw" / "4.mp4")
    given = [
        tmp_path / "raw",
        "--checkpoint",
        checkpoint,
        "--weights",
        weights,
        "--frames",
        4,
        "--threads",
        1,
    ]
    found = []
    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        code, told = predict(*given, "--sheet", "--out", out, "--workers", workers)
        assert code == 0, told
        assert "files: 6 of 6" in told
        found.append({path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".lock"})
    assert len(found[0]) == 3 + 5  # lines, table, options; a sheet for each that is whole
    assert found[0] == found[1]
