"""Runs across three Ray nodes in network namespaces, of which one is killed or its link is cut.

    sudo python benchmarks/nodes.py [--only NAME ...] [--keep FOLDER]

Each node has a namespace with an address of its own, joined to the head's by a bridge; nothing of the
machine's own network is touched. A cut takes the node's link down, and up again once the work goes on
elsewhere; its processes live on meanwhile, and see the same disk. Training, sharding and a sweep must end
as undisturbed ones do. Prints a table, and exits 1 if anything differs. Needs root and Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kill_runs import NAME, arguments, build_sets, difference, sets_in
from node_spaces import ADDRESS, TIMEOUT_S, Cluster, Host, remove_leftovers, until
from optuna import load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console
from rich.table import Table

from dfdet.runs.runfolder import read_metrics
from shards.__main__ import main as shard_here
from tests.shards.clips import files, write_ffpp
from tests.shards.marker_detector import write_marker_detector

WORKER, TRIAL, TASK = "RayTrainWorker", "ImplicitFunc", "ray::prepare"
SPACE = "replace: true\ndimensions:\n  optim.lr: {low: 1.0e-3, high: 5.0e-2, log: true}\n"
TRIALS, STEP = 3, 12
TRAINING = ("--run.cpus_per_worker", "1", "--data.global_batch", "12", "--optim.epochs", "8")

Harm = Callable[[Cluster, Host], None]
HARMS: dict[str, Harm] = {"killed": lambda cluster, node: node.kill(), "cut off": Cluster.cut}


@dataclass(frozen=True)
class Outcome:
    """What a case came to."""

    code: int
    """Exit code of the command."""
    restarts: int
    """How often workers were started again (times)."""
    problem: str
    """The first difference to what is undisturbed; empty where there is none."""


class Driver:
    """A command on the head, and what it prints."""

    def __init__(self, cluster: Cluster, words: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "out.txt"
        self.process = cluster.head.start([sys.executable, *words], self.output, RAY_ADDRESS=ADDRESS)

    def wait_for(self, condition: Callable[[], bool], what: str) -> bool:
        """Waits for something; whether it came before the command ended."""
        until(lambda: condition() or self.process.poll() is not None, what)
        return self.process.poll() is None

    def finish(self) -> int:
        """Waits for its end; gives its exit code."""
        return self.process.wait(timeout=TIMEOUT_S)


class Cases:
    """The cases, on a cluster that is made whole again before each."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        build_sets(folder / "sets")
        self.sets = sets_in(folder / "sets")
        self._whole: dict[str, Path] = {}

    def training(self, workers: str, compared: str, harm: Harm, folder: Path) -> Outcome:
        """A run with so many workers, one of whose nodes comes to harm, against an undisturbed one."""
        whole = self._undisturbed(compared)
        driver, run = self._train(workers, folder), folder / NAME
        driver.wait_for(lambda: _steps(run) >= STEP, "training")
        [node, *_] = [node for node in self.cluster.nodes() if node.runs(WORKER)]
        harm(self.cluster, node)
        driver.wait_for(lambda: _restarts([run]) > 0, "training going on elsewhere")
        self.cluster.unite()
        until(lambda: not node.runs(WORKER), "the end of the workers that were cut off")
        code = driver.finish()
        compare = unlike if workers == compared else roughly
        return Outcome(code, _restarts([run]), compare(whole, run) if code == 0 else _tail(driver.output))

    def _undisturbed(self, workers: str) -> Path:
        if workers not in self._whole:
            folder = self.folder / f"whole-{workers.replace(' ', '-')}"
            driver = self._train(workers, folder)
            if driver.finish():
                raise SystemExit(f"an undisturbed run failed: {_tail(driver.output)}")
            self._whole[workers] = folder / NAME
        return self._whole[workers]

    def _train(self, workers: str, folder: Path) -> Driver:
        words = [*arguments(self.sets, folder), *TRAINING, "--run.workers", *workers.split()]
        return Driver(self.cluster, ["ray_jobs/train.py", *words], folder)

    def sharding(self, harm: Harm, folder: Path) -> Outcome:
        """A data set, against that of one process here."""
        folder.mkdir()
        root, weights = write_ffpp(folder / "ffpp", frames=200), write_marker_detector(folder / "marker.onnx")
        inputs = ["--dataset", "ffpp", "--root", str(root), "--detector", "onnx", "--weights", str(weights)]
        inputs += ["--frames", "16", "--size-px", "64", "--shard-samples", "16"]
        with (folder / "here.txt").open("w") as text, contextlib.redirect_stdout(text):
            shard_here(["videos", *inputs, "--out", str(folder / "here"), "--workers", "1"])
        words = ["ray_jobs/shard.py", *inputs, "--out", str(folder / "there")]
        driver = Driver(self.cluster, words, folder)
        at_work: list[Host] = []

        def is_at_work() -> bool:
            at_work[:] = [node for node in self.cluster.nodes() if node.runs(TASK)]
            return bool(at_work)

        harmed = driver.wait_for(is_at_work, "sharding")
        if harmed:
            harm(self.cluster, at_work[0])
        code = driver.finish()
        equal = harmed and files(folder / "here") == files(folder / "there")
        return Outcome(code, 0, "" if equal else _tail(driver.output))

    def sweep(self, part: str, harm: Harm, folder: Path) -> Outcome:
        """Three settings, of which each must be trained once, from its first step to its last.

        Harm comes to a node with a worker, or one with the process of a trial, which owns run folders.
        """
        folder.mkdir()
        (folder / "space.yaml").write_text(SPACE)
        words = [*arguments(self.sets, folder), *TRAINING, "--run.workers", "1"]
        words += ["--trials", str(TRIALS), "--final", "0", "--space", str(folder / "space.yaml")]
        driver, sweep = Driver(self.cluster, ["ray_jobs/tune.py", *words], folder), folder / NAME
        runs = [sweep / f"{number:04d}" for number in range(TRIALS)]
        driver.wait_for(lambda: max(map(_steps, runs)) >= STEP, "a setting's training")
        [node, *_] = [node for node in self.cluster.nodes() if node.runs(part)]
        harm(self.cluster, node)
        code = driver.finish()
        problem = self._lost_or_repeated(sweep, runs) if code == 0 else _tail(driver.output)
        return Outcome(code, _restarts(runs), problem)

    def _lost_or_repeated(self, sweep: Path, runs: list[Path]) -> str:
        storage = JournalStorage(JournalFileBackend(str(sweep / "study.journal")))
        states = [trial.state.name for trial in load_study(study_name=NAME, storage=storage).trials]
        if len(states) != TRIALS or set(states) - {"COMPLETE", "PRUNED"}:
            return f"settings: {states}"
        for run in runs:
            steps = [record["step"] for record in read_metrics(run / "metrics.jsonl") if "steps" in record]
            if steps != list(range(1, steps[-1] + 1)):
                return f"{run.name}: steps {steps}"
        return ""

    def all(self) -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
        """Names and cases."""
        for word, harm in HARMS.items():
            for workers, compared in (("1", "1"), ("2", "2"), ("1 3", "3")):
                yield (
                    f"training, {workers.replace(' ', ' to ')} workers, node {word}",
                    lambda folder, w=workers, c=compared, h=harm: self.training(w, c, h, folder),
                )
            yield f"sharding, node {word}", lambda folder, h=harm: self.sharding(h, folder)
            for part, what in ((WORKER, "worker"), (TRIAL, "trial")):
                yield (
                    f"sweep, {what}'s node {word}",
                    lambda folder, p=part, h=harm: self.sweep(p, h, folder),
                )


def unlike(whole: Path, other: Path) -> str:
    """The first difference, but for what tells of the disturbance itself."""
    for folder in (whole, other):
        for telling in ("logs", "stacks"):
            shutil.rmtree(folder / telling, ignore_errors=True)
    return difference(whole, other)


def roughly(whole: Path, other: Path) -> str:
    """As ``difference``, between other numbers of workers: equal batches, losses to rounding."""
    expected, records = (
        [record for record in read_metrics(run / "metrics.jsonl") if "steps" in record]
        for run in (whole, other)
    )
    if [each["train/batch_crc32"] for each in records] != [each["train/batch_crc32"] for each in expected]:
        return "batches differ"
    for record, wanted in zip(records, expected, strict=True):
        if abs(record["train/loss/total"] - wanted["train/loss/total"]) > 2e-3:
            return f"step {record['step']}: loss differs"
    results = [json.loads((run / "result.json").read_text()) for run in (whole, other)]
    same = all(results[0][name] == results[1][name] for name in ("status", "step", "epoch"))
    return "" if same else "result.json differs"


def _steps(run: Path) -> int:
    return max((record.get("step", 0) for record in read_metrics(run / "metrics.jsonl")), default=0)


def _restarts(runs: list[Path]) -> int:
    logs = [(run / "log.txt").read_text() for run in runs if (run / "log.txt").exists()]
    return sum(max(0, log.count(" workers x ") - 1) for log in logs)


def _tail(output: Path) -> str:
    return " ".join(output.read_text(errors="replace")[-500:].split())


def main() -> int:
    """Runs the cases, prints the table, and exits 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name holds one of these")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept for a look at them")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("error: network namespaces need root and the command ip (iproute2)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces do not go by themselves
    remove_leftovers()
    table, failed = Table("case", "exit code", "restarts", "equal", "seconds"), []
    with contextlib.ExitStack() as stack:
        folder = (options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        cluster = stack.enter_context(Cluster(folder))
        cases = Cases(cluster, folder)
        for name, case in cases.all():
            if not any(word in name for word in options.only):
                continue
            began = time.monotonic()
            cluster.fill()
            found = case(folder / re.sub(r"\W+", "-", name))
            equal = "yes" if not found.problem else "no"
            row = (name, str(found.code), str(found.restarts), equal, f"{time.monotonic() - began:.0f}")
            print("  ".join((*row, found.problem)), flush=True)
            table.add_row(*row)
            failed += [name] if found.problem else []
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
