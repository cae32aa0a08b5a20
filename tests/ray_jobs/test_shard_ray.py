"""Sharding on a real local Ray: equal bytes to processes, actors, killed workers and drivers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shards.__main__ import main
from tests.shards.clips import files, write_clip, write_ffpp
from tests.shards.marker_detector import write_marker_detector

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
VIDEOS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    root = write_ffpp(folder / "ffpp")
    weights = write_marker_detector(folder / "marker.onnx")
    words = f"--dataset ffpp --root {root} --detector onnx --weights {weights} --frames 4 --size-px 64"
    return [*words.split(), "--shard-samples", "16"]


@pytest.fixture(scope="module")
def expected(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("processes")
    assert main(["videos", *inputs, "--out", str(out), "--workers", "1"]) == 0
    return files(out)


def start(*words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "ray_jobs/shard.py", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*words: str) -> str:
    program = start(*words)
    told, _ = program.communicate(timeout=200)
    assert program.returncode == 0, told
    return told


def until(program: subprocess.Popen[str], done: int) -> None:
    """Waits for the progress line that tells so many videos."""
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("videos: ") and int(line.split()[1]) >= done:
            return
    raise AssertionError("ended before")


def task_workers(program: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(program.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::prepare"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("more", [["--workers", "4"], ["--actors", "2"]])
def test_tasks_and_actors_make_the_bytes_of_processes(
    more: list[str], inputs: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    told = run(*inputs, "--out", str(tmp_path), *more)
    assert f"videos: {VIDEOS} of {VIDEOS}" in told
    assert "--data.train" in told
    assert files(tmp_path) == expected


def test_a_killed_worker_changes_no_byte(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    program = start(*inputs, "--out", str(tmp_path), "--workers", "1")
    until(program, 2)
    killed = 0
    for _ in range(200):
        for worker in task_workers(program)[:1]:
            worker.kill()
            killed += 1
        if killed or program.poll() is not None:
            break
        time.sleep(0.01)
    told, _ = program.communicate(timeout=200)
    assert program.returncode == 0, told
    assert killed
    assert files(tmp_path) == expected


def test_a_killed_driver_goes_on(inputs: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    program = start(*inputs, "--out", str(tmp_path), "--workers", "1")
    until(program, 12)
    tree = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    for process in tree:  # Ray's own processes would end by themselves, some seconds later.
        process.kill()
    program.communicate()
    assert not list(tmp_path.glob("*.json"))
    told = run(*inputs, "--out", str(tmp_path))
    assert "were finished before" in told
    assert files(tmp_path) == expected


def test_a_signal_leaves_what_is_finished(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    program = start(*inputs, "--out", str(tmp_path), "--workers", "1")
    until(program, 12)
    program.send_signal(signal.SIGTERM)
    told, _ = program.communicate(timeout=60)
    assert program.returncode == 143, told
    assert not list(tmp_path.glob("*.json"))
    run(*inputs, "--out", str(tmp_path))
    assert files(tmp_path) == expected


def test_a_dry_run_starts_no_ray(inputs: list[str], tmp_path: Path) -> None:
    told = run(*inputs, "--out", str(tmp_path / "out"), "--dry-run")
    assert "ffpp-c23" in told
    assert not (tmp_path / "out").exists()
    assert "Ray" not in told


def test_failures_past_the_bound_end_the_job_with_one_line(inputs: list[str], tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / "raw" / f"{number}.mp4", frames=10, faces=0)
    rows = "".join(f"{number}.mp4,real,test\n" for number in range(4))
    (tmp_path / "raw" / "labels.csv").write_text("file,label,split\n" + rows)
    weights = inputs[inputs.index("--weights") + 1]
    words = f"--dataset own --root {tmp_path}/raw --out {tmp_path}/out --detector onnx --weights {weights}"
    program = start(*words.split(), "--max-failed", "0.5")
    told, _ = program.communicate(timeout=100)
    assert program.returncode == 1
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: 3 of 4 videos failed, more than --max_failed 0.5")
    assert not list((tmp_path / "out").glob("*.json"))
