"""The main job on a real local Ray with its storage behind an S3 URL."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dfdet.checkpoints import checkpoint
from dfdet.runs.objects import Store
from tests.dfdet.runs.s3 import BUCKET, Server, s3_server
from tests.ray_jobs.test_train_ray import ROOT, command, environment, last_weights, result_of, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LONG = ("--optim.epochs", "16")
"""Metrics come to a URL some seconds late: a kill must still find the run under way."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of a whole run in a local folder."""
    storage = tmp_path_factory.mktemp("whole")
    done = finish(command(signal_sets, storage, *LONG))
    assert done.returncode == 0, done.stdout + done.stderr
    return storage


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """To its end; again where Ray itself did not start within its 30 s, as on a crowded machine."""
    for _ in range(3):
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400
        )
        if "node timed out during startup" not in done.stderr:
            break
    return done


def remote_command(sets: dict[str, Path], storage: str, cache: Path, *more: str) -> list[str]:
    place = f"s3://{BUCKET}/{storage}"
    return command(sets, place, "--data.cache_dir", str(cache), *LONG, *more)  # type: ignore[arg-type]


def records(server: Server, storage: str) -> list[dict[str, Any]]:
    lines = (server.get(f"{storage}/run/metrics.jsonl") or b"").splitlines()
    return [json.loads(line) for line in lines]


def at_step(server: Server, storage: str, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        time.sleep(0.3)
        return any(record["step"] >= step for record in records(server, storage))

    return reached


def remote_result(server: Server, storage: str) -> dict[str, Any]:
    return json.loads(server.get(f"{storage}/run/result.json") or b"{}")


def remote_weights(server: Server, storage: str, folder: Path) -> dict[str, torch.Tensor]:
    """Trained tensors of the last checkpoint."""
    store = Store(f"s3://{BUCKET}/{storage}/run/checkpoints")
    last = json.loads(store.get("last.json") or b"")["checkpoint"]
    folder.mkdir()
    for name in store.list(last):
        store.get_file(f"{last}/{name}", folder / name)
    return checkpoint.load_tensors(folder).trained


def kill_all(driver: subprocess.Popen[str]) -> None:
    """The driver and its local Ray at once, as a lost machine."""
    found = [driver, *psutil.Process(driver.pid).children(recursive=True)]
    for process in found:
        process.kill()
    driver.communicate()


def assert_equal_runs(server: Server, storage: str, undisturbed: Path, tmp_path: Path) -> None:
    assert remote_result(server, storage)["metrics"] == result_of(undisturbed)["metrics"]
    found = remote_weights(server, storage, tmp_path / "weights")
    for name, tensor in last_weights(undisturbed).items():
        assert torch.equal(tensor, found[name])
    lines = (undisturbed / "run/metrics.jsonl").read_text().splitlines()
    keys = ("step", "train/batch_crc32", "train/loss/total")
    assert [[record.get(key) for key in keys] for record in records(server, storage)] == [
        [record.get(key) for key in keys] for record in map(json.loads, lines)
    ]


def test_a_run_stopped_then_lost_with_its_machine_ends_as_if_undisturbed(
    server: Server, undisturbed: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    first = start(remote_command(signal_sets, "lost", tmp_path / "a"))
    wait_for(at_step(server, "lost", 3), first, 400)
    first.terminate()
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 143, output
    assert f"run folder: s3://{BUCKET}/lost/run" in output
    assert " I step 1/" in output
    assert remote_result(server, "lost")["status"] == "stopped"
    assert not list((tmp_path / "a/runs").glob("*/*"))

    second = start(remote_command(signal_sets, "lost", tmp_path / "b"))
    wait_for(lambda: b'"pid"' in (server.get("lost/run/owner.json") or b""), second, 400)
    refused = finish(remote_command(signal_sets, "lost", tmp_path / "c"))
    assert refused.returncode == 2
    assert f"run folder s3://{BUCKET}/lost/run: in use by process {second.pid} on " in refused.stderr
    wait_for(at_step(server, "lost", 40), second, 400)
    kill_all(second)
    shutil.rmtree(tmp_path / "b")

    third = finish(remote_command(signal_sets, "lost", tmp_path / "d"))
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"result: s3://{BUCKET}/lost/run/result.json" in third.stdout
    assert (server.get("lost/run/log.txt") or b"").count(b"resumed at step") == 2
    assert_equal_runs(server, "lost", undisturbed, tmp_path)
    assert "owner.json" not in server.names("lost/run")

    again = finish(remote_command(signal_sets, "lost", tmp_path / "e"))
    assert again.returncode == 0
    assert f"s3://{BUCKET}/lost/run: already finished" in again.stdout


def test_a_storage_that_is_away_for_a_while_changes_nothing(
    server: Server, undisturbed: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(remote_command(signal_sets, "away", tmp_path / "a"))
    wait_for(at_step(server, "away", 1), driver, 400)
    server.stop()
    [log] = (tmp_path / "a/runs").glob("*/rank-0-*/run/log.txt")
    wait_for(lambda: "cannot be written" in log.read_text(), driver, 400)
    server.start()
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    assert_equal_runs(server, "away", undisturbed, tmp_path)
