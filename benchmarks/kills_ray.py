"""Kills at random moments of runs through Ray: a worker, the controller, the driver, the whole cluster.

    python benchmarks/kills_ray.py [--count 20] [--seed 0] [--keep FOLDER]

Each case runs ``ray_jobs/train.py`` with two workers on a local Ray of its own until a random moment, at
which SIGKILL hits one of its processes, or all of them. Where the driver survives it must finish the run
by itself; else the same command is given again. Batches, losses, weights and metrics must be those of
one uninterrupted run, bit for bit, and no process may be left. ``benchmarks/kills.py`` calls this too.

Moments are drawn from the seed (NumPy's PCG64): a share of the run's steps, and up to half a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import psutil
from kill_outcome import Outcome
from kill_runs import EPOCHS, NAME, STEPS_PER_EPOCH, arguments, build_sets, difference, sets_in

from dfdet.runs.runfolder import read_metrics

ROOT = Path(__file__).parents[1]
KINDS = {"worker": "RayTrainWorker", "controller": "TrainController", "driver": "", "cluster": ""}
"""What is killed, and what its command line holds (Ray names a process after its actor)."""

START_SHARE = 0.2
"""Share of the cases that are killed before the first step."""

TIMEOUT_S, LEAVE_S = 600.0, 60.0
"""How long a run, and its processes after a kill of the driver, may take (seconds)."""


class Command:
    """One start of the command, and the processes under it."""

    def __init__(self, sets: dict[str, Path], storage: Path) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        self.output = storage / "out.txt"
        # Ray's sockets lie in its folder, and their paths must be short
        self._temporary = tempfile.mkdtemp(prefix="kills-")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.output.open("ab") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "ray_jobs/train.py", *arguments(sets, storage)],
                cwd=ROOT,
                env=environment | {"RAY_TMPDIR": self._temporary},
                stdout=output,
                stderr=output,
            )
        self._seen: set[psutil.Process] = {psutil.Process(self._driver.pid)}

    def look(self) -> None:
        """Notes all processes under the command; those of a killed one are not under it any more."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen |= set(psutil.Process(self._driver.pid).children(recursive=True))

    def ended(self) -> bool:
        """Whether the driver has ended."""
        return self._driver.poll() is not None

    def kill(self, kind: str) -> bool:
        """Kills what the kind says; gives whether there was such a process."""
        self.look()
        if kind in {"driver", "cluster"}:
            targets = [process for process in self._seen if kind == "cluster" or self._is_driver(process)]
        else:
            targets = [process for process in self._seen if KINDS[kind] in _command_line(process)][:1]
        for process in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(targets)

    def _is_driver(self, process: psutil.Process) -> bool:
        return process.pid == self._driver.pid

    def finish(self) -> str:
        """Waits for the end, and for all processes; gives what went wrong, empty if nothing."""
        end = time.monotonic() + TIMEOUT_S
        while not self.ended():
            self.look()
            if time.monotonic() > end:
                self.kill("cluster")
                return f"not done after {TIMEOUT_S:.0f} s: {self._tail()}"
            time.sleep(0.2)
        left = self._left()
        shutil.rmtree(self._temporary, ignore_errors=True)
        if left:
            return f"processes left: {[process.pid for process in left]}"
        code = self._driver.returncode
        return "" if code in (0, -signal.SIGKILL) else f"exit code {code}: {self._tail()}"

    def _left(self) -> list[psutil.Process]:
        """Processes that did not go by themselves, ended now.

        Ray's two agents of a node are ended first: without its head they try for a minute to report
        to it, and hold nothing of the run.
        """
        agents = [process for process in self._seen if "Agent" in _command_line(process)]
        for process in agents if self._driver.returncode else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        left = psutil.wait_procs(list(self._seen), timeout=LEAVE_S)[1]
        for process in left:
            process.kill()
        return list(left)

    def _tail(self) -> str:
        return " ".join(self.output.read_text(errors="replace")[-500:].split())


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _last_step(run: Path) -> int:
    return max((record.get("step", 0) for record in read_metrics(run / "metrics.jsonl")), default=0)


class RayCases:
    """Cases through Ray, against one uninterrupted run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        build_sets(folder / "sets")
        self.sets = sets_in(folder / "sets")
        self.whole = folder / "whole" / NAME
        if problem := Command(self.sets, folder / "whole").finish():
            raise SystemExit(f"the uninterrupted run failed: {problem}")

    def run(self, number: int) -> Outcome:
        """One case: a kill, where need be the same command again, the comparison."""
        began = time.monotonic()
        random = np.random.default_rng([self.seed, number])
        kind = list(KINDS)[number % len(KINDS)]
        early = random.random() < START_SHARE
        step = 0 if early else int(random.integers(1, EPOCHS * STEPS_PER_EPOCH - 1))
        pause_s = float(random.uniform(0, 5.0 if early else 0.5))

        storage = self.folder / f"case{number}"
        command = Command(self.sets, storage)
        kills = self._kill(command, kind, step, pause_s, storage / NAME)
        problem = command.finish()
        if not problem and kills and kind in {"driver", "cluster"}:
            problem = Command(self.sets, storage).finish()
        problem = problem or difference(self.whole, storage / NAME)
        moment = "start" if early else "steps"
        return Outcome(number, kind, moment, kills, not problem, problem, time.monotonic() - began)

    def _kill(self, command: Command, kind: str, step: int, pause_s: float, run: Path) -> int:
        """Waits for the step and the pause, then for a process to kill; gives the kills."""
        while not command.ended() and (_last_step(run) < step or not run.exists()):
            time.sleep(0.02)
        time.sleep(pause_s)
        while not command.ended():
            if command.kill(kind):
                return 1
            time.sleep(0.02)
        return 0


def ray_cases(numbers: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Cases through Ray, one after another: a worker, the controller, the driver, the cluster, again."""
    cases = RayCases(folder, seed)
    for number in numbers:
        yield cases.run(number)


def main() -> int:
    """Runs the cases, prints a line for each, and exits 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept for a look at them")
    options = parser.parse_args()
    unequal = 0
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for outcome in ray_cases(range(options.count), options.seed, folder.absolute()):
            verdict = "equal" if outcome.equal else f"DIFFERS: {outcome.detail}"
            print(
                f"{outcome.number:3d}  {outcome.kind:10s}  {outcome.moment:5s}  {outcome.kills} kills "
                f" {outcome.seconds:5.0f} s  {verdict}",
                flush=True,
            )
            unequal += not outcome.equal
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
