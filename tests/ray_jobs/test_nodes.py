"""Several nodes: one that is killed, or cut off and back again, changes nothing in what comes out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from benchmarks.kill_runs import difference
from dfdet.runs.runfolder import RunFolder, read_metrics
from ray_jobs import worker
from shards.__main__ import main as shard_here
from tests.ray_jobs import test_tune_ray as tune
from tests.ray_jobs.nodes import Node, Nodes, until
from tests.ray_jobs.test_train_ray import ROOT, STEPS_PER_EPOCH, at_step, environment
from tests.ray_jobs.test_train_ray import command as training
from tests.shards.clips import files, write_ffpp
from tests.shards.marker_detector import write_marker_detector

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

TWO = ("--run.workers", "2", "--run.cpus_per_worker", "1")
WORKER = "RayTrainWorker"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("n")) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.bury()
    cluster.fill(3)
    return cluster


class Driver:
    """A command of ours, which has joined the cluster; what it prints goes to a file."""

    def __init__(self, nodes: Nodes, arguments: list[str], output: Path) -> None:
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=environment() | {"RAY_ADDRESS": nodes.address},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def told(self) -> str:
        return self.output.read_text()

    def running(self) -> bool:
        assert self.process.poll() in (None, 0), self.told()
        return self.process.poll() is None

    def finish(self) -> None:
        assert self.process.wait(timeout=400) == 0, self.told()


def train(nodes: Nodes, sets: dict[str, Path], storage: Path) -> Driver:
    return Driver(nodes, training(sets, storage, *TWO), storage / "out.txt")


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Nodes, signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    cluster.fill(3)
    storage = tmp_path_factory.mktemp("whole")
    train(cluster, signal_sets, storage).finish()
    return storage / "run"


def holders(nodes: Nodes, name: str) -> list[Node]:
    return [node for node in nodes.nodes if node.running(name)]


def unlike(undisturbed: Path, run: Path) -> str:
    """The first difference, but for what tells of the disturbance itself."""
    for folder in (undisturbed, run):
        for telling in ("logs", "stacks"):
            shutil.rmtree(folder / telling, ignore_errors=True)
    return difference(undisturbed, run)


def test_a_node_killed_in_training_changes_no_bit(
    nodes: Nodes, undisturbed: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver = train(nodes, signal_sets, tmp_path)
    until(lambda: at_step(tmp_path, STEPS_PER_EPOCH + 4)() and driver.running(), 300)
    holding = holders(nodes, WORKER)
    assert len(holding) == 2
    holding[0].kill()
    driver.finish()
    assert "resumed at step" in (tmp_path / "run/log.txt").read_text()
    assert unlike(undisturbed, tmp_path / "run") == ""


def test_records_of_workers_lost_before_their_first_checkpoint_are_not_doubled(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1})
    worker.drop_repeated(run)
    assert read_metrics(run.metrics_jsonl) == []
    run.append_metrics({"step": 1})
    (run.checkpoints / "step_00000001").mkdir(parents=True)
    worker.drop_repeated(run)  # the resume drops what comes after it
    assert read_metrics(run.metrics_jsonl) == [{"step": 1}]


def test_workers_that_were_cut_off_and_come_back_leave_the_run_to_others(
    nodes: Nodes, undisturbed: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    driver, log = train(nodes, signal_sets, tmp_path), tmp_path / "run/log.txt"
    until(lambda: at_step(tmp_path, STEPS_PER_EPOCH + 4)() and driver.running(), 300)
    cut_off = holders(nodes, WORKER)
    assert len(cut_off) == 2  # all workers: together they could go on
    for node in cut_off:
        node.freeze()
    for node in cut_off:
        nodes.wait_dead(node)
    nodes.fill(2)  # without letting the others back
    until(lambda: "resumed at step" in log.read_text() and driver.running(), 300)
    back = [process for node in cut_off for process in node.thaw(WORKER)]
    driver.finish()
    assert len(back) == 2
    assert psutil.wait_procs(back, timeout=60)[1] == []
    assert unlike(undisturbed, tmp_path / "run") == ""


def test_a_node_killed_in_sharding_changes_no_byte(nodes: Nodes, tmp_path: Path) -> None:
    root, weights = write_ffpp(tmp_path / "ffpp"), write_marker_detector(tmp_path / "marker.onnx")
    words = f"--dataset ffpp --root {root} --detector onnx --weights {weights} --frames 4 --size-px 64"
    inputs = [*words.split(), "--shard-samples", "16"]
    assert shard_here(["videos", *inputs, "--out", str(tmp_path / "here"), "--workers", "1"]) == 0

    command = [sys.executable, "ray_jobs/shard.py", *inputs, "--out", str(tmp_path / "there")]
    driver = Driver(nodes, command, tmp_path / "out.txt")
    node = nodes.with_worker("ray::prepare")
    node.kill()
    assert driver.running()
    driver.finish()
    assert "videos: 24 of 24" in driver.told()
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_nodes_killed_in_a_sweep_lose_no_setting_and_repeat_none(
    nodes: Nodes, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    more = ("--trials", "3", "--final", "0", "--optim.epochs", "8")
    driver = Driver(nodes, [*tune.command(signal_sets, tmp_path), *more], tmp_path / "out.txt")
    sweep = tmp_path / "sweep"
    until(
        lambda: (
            any(len(read_metrics(path)) > STEPS_PER_EPOCH + 4 for path in sweep.glob("*/metrics.jsonl"))
            and driver.running()
        ),
        300,
    )
    for node in holders(nodes, WORKER):  # one is left, which Ray would keep for workers of the dead trials
        node.kill()
    driver.finish()
    found = tune.trials(sweep)
    assert len(found) == 3
    assert {trial.state for trial in found} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert "resumed at step" in "".join(path.read_text() for path in sweep.glob("*/log.txt"))
    for trial in found:
        log = read_metrics(sweep / f"{trial.number:04d}" / "metrics.jsonl")
        steps = [record["step"] for record in log if "train/loss/total" in record]
        assert steps == list(range(1, steps[-1] + 1))
