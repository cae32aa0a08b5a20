"""Failures: which ones are not tried again, and kills of what the driver depends on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from dfdet.config import Config
from dfdet.errors import DamagedSampleError
from dfdet.runs.runfolder import RunFolder, read_metrics
from ray_jobs import failures, notices, worker
from ray_jobs.trainer import explain
from tests.ray_jobs.test_train_ray import at_step, command, environment, result_of, start, wait_for


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def bug(message: str = "a bug") -> None:
    raise ValueError(message)


def other_bug() -> None:
    raise ValueError("a bug")


def crash(run: RunFolder, rank: int = 0, what: object = bug, *arguments: str) -> None:
    try:
        what(*arguments)  # type: ignore[operator]
    except ValueError as error:
        failures.record(run, rank, error)


def test_bad_input_is_not_tried_again(run: RunFolder) -> None:
    failures.record(run, 1, DamagedSampleError("sample 3: damaged"))
    assert failures.has_failed_for_good(run)
    assert failures.read(run) == ("sample 3: damaged", 1)


def test_a_crash_is_tried_again_once(run: RunFolder) -> None:
    run.append_metrics({"step": 40})
    crash(run)
    assert failures.read(run) is None
    crash(run, 0, bug, "a bug at 0x7f00")
    assert failures.read(run) == (
        "worker 0 failed twice after step 40 in the same way (ValueError: a bug at 0x7f00); not tried a"
        " third time: its traceback is in the log",
        1,
    )
    assert run.log_txt.read_text().count("Traceback") == 2


def test_a_crash_after_progress_is_tried_again(run: RunFolder) -> None:
    for step in (40, 50, 60):
        run.append_metrics({"step": step})
        crash(run)
    assert not failures.has_failed_for_good(run)


def test_crashes_in_other_places_or_workers_are_tried_again(run: RunFolder) -> None:
    crash(run)
    crash(run, 1)
    crash(run, 0, other_bug)
    assert not failures.has_failed_for_good(run)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer"),
        dist.DistBackendError("the other side has gone"),
    ],
)
def test_the_death_of_another_worker_is_never_a_crash_of_this_one(run: RunFolder, error: Exception) -> None:
    for _ in range(3):
        failures.record(run, 0, error)
    assert not failures.has_failed_for_good(run)
    assert run.log_txt.read_text().count("worker 0 lost another one") == 3


def test_a_new_start_forgets_failures(run: RunFolder) -> None:
    crash(run)
    failures.record(run, 0, DamagedSampleError("sample 3: damaged"))
    failures.forget(run)
    crash(run)
    assert not failures.has_failed_for_good(run)


def test_a_worker_of_an_earlier_attempt_leaves_and_records_nothing(run: RunFolder) -> None:
    earlier = notices.begin_attempt(run)
    notices.check_current(run, earlier)
    later = notices.begin_attempt(run)
    notices.check_current(run, later)
    with pytest.raises(notices.SupersededError, match="belongs to a later attempt") as caught:
        notices.check_current(run, earlier)
    failures.record(run, 0, caught.value)
    assert not run.log_txt.exists()


def test_a_checkpoint_is_wanted_until_there_is_one(run: RunFolder) -> None:
    last = run.checkpoints / "last.json"
    last.parent.mkdir()
    last.write_text('{"step": 10}')
    assert notices.checkpoint_wanted(run) is None
    notices.want_checkpoint(run)
    assert notices.checkpoint_wanted(run) == 10
    last.write_text('{"step": 11}')
    assert notices.checkpoint_wanted(run) is None


def test_the_first_checkpoint_can_be_wanted(run: RunFolder) -> None:
    notices.want_checkpoint(run)
    assert notices.checkpoint_wanted(run) == -1
    run.checkpoints.mkdir()
    (run.checkpoints / "last.json").write_text('{"step": 1}')
    assert notices.checkpoint_wanted(run) is None


def test_the_line_of_failed_workers_names_the_cause_and_the_remedy() -> None:
    from ray.train import WorkerGroupError

    failure = WorkerGroupError("long\ntext", {1: ZeroDivisionError("division\nby zero")})
    assert explain(failure, Config()) == (
        "run.max_failures=3: the workers failed once more than that; the last time worker 1 with"
        " ZeroDivisionError: division by zero; see the log, and start the same command again to go on from"
        " the newest checkpoint"
    )


# ---------------------------------------------------------------- through the real command


def under(driver: subprocess.Popen[str], *names: str) -> list[psutil.Process]:
    """Processes under the driver whose command line holds one of the names."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(name in line for name in names):
            found.append(process)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they end by themselves; Ray's agents, which report to a lost Ray for a minute, are ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "Agent" in " ".join(process.cmdline()):
                process.kill()
    return psutil.wait_procs(processes, timeout=60)[1] == []


def steps_of(storage: Path) -> list[int]:
    return [record["step"] for record in read_metrics(storage / "run/metrics.jsonl") if "steps" in record]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_controller_is_replaced(signal_sets: dict[str, Path], tmp_path: Path) -> None:
    driver = start(command(signal_sets, tmp_path, "--optim.epochs", "2"))
    wait_for(at_step(tmp_path, 7), driver)
    under(driver, "TrainController")[0].kill()
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    log = (tmp_path / "run/log.txt").read_text()
    assert "controller died (ActorDiedError); starting another (1 of run.max_failures=3)" in log
    assert "resumed at step " in log
    assert steps_of(tmp_path) == list(range(1, 25))


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_ray_ends_the_driver_with_one_line_and_leaves_the_run(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(command(signal_sets, tmp_path, "--optim.epochs", "400"))
    wait_for(at_step(tmp_path, 7), driver)
    below = under(driver, "")
    for process in under(driver, "gcs_server", "raylet/raylet"):
        process.kill()
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 1, output
    line = output.strip().splitlines()[-1]
    assert line.startswith("error: Ray ")
    assert "give the same --run.name again" in line
    assert result_of(tmp_path)["status"] == "failed"
    assert not (tmp_path / "run/owner.json").exists()
    assert gone(below)
    assert list((tmp_path / "run/checkpoints").glob("step_*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_sigterm_to_a_worker_stops_the_run_with_a_checkpoint(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = start(command(signal_sets, tmp_path, "--optim.epochs", "400"))
    wait_for(at_step(tmp_path, 7), driver)
    under(driver, "RayTrainWorker")[1].send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 1, output
    stopped = result_of(tmp_path)
    assert stopped["status"] == "stopped"
    assert stopped["reason"].startswith("SIGTERM to worker ")
    assert f"stopped ({stopped['reason']}); go on with --run.name run" in output
    last = json.loads((tmp_path / "run/checkpoints/last.json").read_text())
    assert last["step"] == stopped["step"] == steps_of(tmp_path)[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_same_command_goes_on(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    arguments = command(signal_sets, tmp_path, "--optim.epochs", "2")
    driver = start(arguments)
    wait_for(at_step(tmp_path, 7), driver)
    below = under(driver, "")
    driver.kill()
    assert gone(below)
    driver.communicate()
    done = subprocess.run(
        arguments,
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed at step " in (tmp_path / "run/log.txt").read_text()
    assert steps_of(tmp_path) == list(range(1, 25))


def test_a_second_sigterm_ends_a_worker_at_once() -> None:
    child = os.fork()
    if child == 0:
        worker.heed_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        if not worker.SIGNALLED.is_set():
            os._exit(1)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM


def test_a_sigterm_that_a_kill_may_follow_is_not_heeded_at_once() -> None:
    """Ray's own: a worker that it replaces must not leave a request to stop to those that follow."""
    child = os.fork()
    if child == 0:
        worker.heed_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        at_once, heeded = worker.TERMINATED.is_set(), worker.TERMINATED.wait(60)
        os._exit(0 if heeded and not at_once else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
