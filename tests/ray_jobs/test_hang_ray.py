"""Workers on a real local Ray that do nothing any more: named, ended, started again or given up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dfdet.runs.runfolder import read_metrics
from tests.ray_jobs.test_failures import gone, steps_of, under
from tests.ray_jobs.test_train_ray import ROOT, at_step, command, environment, result_of, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(700)]

FAULTS = ROOT / "tests/dfdet/hang/faults"


def start(arguments: list[str], fault: str) -> subprocess.Popen[str]:
    """The command with a fault from outside, see ``faults/sitecustomize.py``."""
    return subprocess.Popen(
        [*arguments, "--engine.hang_timeout_s", "3", "--run.workers", "2", "--optim.epochs", "1"],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": f"{FAULTS}:{ROOT}", "DFDET_FAULT": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_worker_asleep_at_the_same_step_twice_ends_the_run_with_its_line_and_its_stack(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    arguments = command(signal_sets, tmp_path, "--engine.checkpoint_every", "100")
    driver = start(arguments, "1:3:sleep")
    try:
        wait_for(at_step(tmp_path, 2), driver, 250)
        below = under(driver, "")
        output, _ = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert driver.returncode == 1, output
    line = output.strip().splitlines()[-1]
    assert line.startswith("error: twice at the same step: worker 1 did nothing for "), output
    assert (
        " s in step 3 (forward and backward), while 1 other waited for it; it is in sitecustomize.py:" in line
    )
    assert (
        f" fall_asleep; stacks: {tmp_path}/run/stacks; if that is no hang, raise --engine.hang_timeout_s"
        in line
    )
    stacks = (tmp_path / "run/stacks/rank-1.txt").read_text()
    assert stacks.count("in fall_asleep") == 2
    assert result_of(tmp_path)["status"] == "failed"
    assert (tmp_path / "run/log.txt").read_text().count(" E worker 1 did nothing for ") == 2
    assert gone(below)


def test_a_read_that_hangs_is_named_and_the_run_goes_on_to_its_end(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(command(signal_sets, tmp_path), f"1:2:read:{tmp_path}/struck")
    try:
        output, _ = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    log = (tmp_path / "run/log.txt").read_text()
    assert " (data wait), while 1 other waited for it; it is in sitecustomize.py:" in log
    assert " fall_asleep (thread dfdet-decode_" in log
    assert result_of(tmp_path)["status"] == "finished"
    assert steps_of(tmp_path) == list(range(1, 13))
    entries = [entry for file in (tmp_path / "run/logs").iterdir() for entry in read_metrics(file)]
    [error] = [entry for entry in entries if entry["message"].startswith("worker 1 did nothing for ")]
    assert (error["level"], error["run"], error["trial"]) == ("error", "run", None)
