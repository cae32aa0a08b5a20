"""Kills at random moments: does a run that goes on end as an uninterrupted one does?

    python benchmarks/kills.py [--local 180] [--ray 20] [--seed 0] [--keep FOLDER] [--record FILE]

Local cases are two ranks of ``python -m dfdet``, started as torchrun starts them. A case runs until a
random moment, at which SIGKILL hits one rank, both, or the process that started them; sometimes twice;
then the same command is given again until it is done. Batches, losses, weights, metrics and files must
be those of one uninterrupted run, bit for bit. Cases through Ray: ``benchmarks/kills_ray.py``.

Moments are fractions of the time that the uninterrupted run took, drawn from the seed (NumPy's PCG64).
The processes are forks of this one, which has imported what they need: a case takes seconds. Prints a
table, and exits 1 if any case differs, naming it. Outcomes are written to the record as they come, and
cases that stand in it are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # no threads before the forks
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from kill_outcome import Outcome, keeping, kept
from kill_runs import NAME, arguments, build_sets, difference, sets_in
from kill_start import Start, in_a_fork, preload
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

KINDS = ("first rank", "second rank", "both ranks", "launcher")
SHARES = (0.25, 0.5, 0.25)
"""Of cases that are killed before the end of the first step, in the steps, and after the last."""
AGAIN = 1 / 3
"""Of cases that are killed again after they have gone on."""
TRIES = 6


class LocalCases:
    """Cases of the local loop, against one uninterrupted run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        in_a_fork(lambda: build_sets(folder / "sets"))
        self.sets = sets_in(folder / "sets")
        self.whole = folder / "whole" / NAME
        self._uninterrupted(self.whole)
        # the first fills caches, the second tells times
        self.marks = self._uninterrupted(folder / "again" / NAME)
        if problem := difference(self.whole, folder / "again" / NAME):
            raise SystemExit(f"two uninterrupted runs differ: {problem}")

    def _uninterrupted(self, run: Path) -> list[float]:
        """Runs it; gives when each of its records and its end came (seconds from the start)."""
        start = self._start(run.parent)
        times: list[float] = []
        while not start.ended():
            times += [start.age()] * (_records(run) - len(times))
            time.sleep(0.002)
        if start.code() != 0:
            raise SystemExit(f"the uninterrupted run failed:\n{start.output.read_text()}")
        return [*times, start.age()]

    def run(self, number: int) -> Outcome:
        """One case: kills, resumes, comparison."""
        began = time.monotonic()
        random = np.random.default_rng([self.seed, number])
        kind = KINDS[number % len(KINDS)]
        storage = self.folder / f"case{number}"
        start = self._killed(kind, storage, lambda: self._moment(random))
        while start is None:  # it was over before its moment
            shutil.rmtree(storage)
            start = self._killed(kind, storage, lambda: self._moment(random))
        moment, kills, orphans = start.phase(storage / NAME), 1, start.orphans()
        if random.random() < AGAIN and not orphans:
            again = self._killed(kind, storage, lambda: (0, float(random.uniform(0, self.marks[-1] / 2))))
            kills, orphans = (2, again.orphans()) if again else (1, [])
        problem = self._finish(storage, orphans) or difference(self.whole, storage / NAME)
        return Outcome(number, kind, moment, kills, not problem, problem, time.monotonic() - began)

    def _moment(self, random: np.random.Generator) -> tuple[int, float]:
        """When to kill: after so many records, so long (seconds).

        Drawn as a time of the uninterrupted run; told by its records, since no two take equally long.
        """
        times = np.array([0.0, *self.marks])
        first, last = times[1], times[-4]  # the last two records are of the validation and the end
        low, high = ((0.0, first), (first, last), (last, times[-1]))[random.choice(3, p=SHARES)]
        drawn = random.uniform(low, high)
        records = int(np.searchsorted(times, drawn, side="right")) - 1
        return records, float(drawn - times[records])

    def _killed(self, kind: str, storage: Path, moment: Callable[[], tuple[int, float]]) -> Start | None:
        """A start that was killed at a moment; None if it was over before."""
        records, delay = moment()
        start = self._start(storage)
        while not start.ended() and _records(storage / NAME) < records:
            time.sleep(0.001)
        at = start.age() + delay
        while not start.ended() and start.age() < at:
            time.sleep(0.001)
        return start if not start.ended() and start.kill(kind) else None

    def _start(self, storage: Path) -> Start:
        return Start(arguments(self.sets, storage), storage / "out.txt")

    def _finish(self, storage: Path, orphans: list[Start]) -> str:
        """Gives the command again until it is done; what went wrong, if anything.

        Ranks whose launcher is gone may still run: the folder is theirs, and others are refused.
        """
        for _ in range(TRIES):
            start = self._start(storage)
            code = start.code()
            if code == 0:
                _wait(orphans)
                return ""
            if code != 2 or not orphans:
                return f"exit code {code}: {start.output.read_text()[-500:]}"
            _wait(orphans)
        return "refused again and again"


def _wait(orphans: list[Start]) -> None:
    while orphans:
        orphans.pop().wait_for_ranks()


def _records(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def local_cases(numbers: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Cases of the local loop, one after another."""
    preload()
    cases = LocalCases(folder, seed)
    for number in numbers:
        yield cases.run(number)


def all_cases(local: Sequence[int], through_ray: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Local cases, then those through Ray."""
    if local:
        yield from local_cases(local, seed, folder)
    if through_ray:
        from kills_ray import ray_cases

        yield from ray_cases(through_ray, seed, folder / "ray")


def tracked(outcomes: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    """A bar of them, without the thread that draws it elsewhere: this process forks."""
    with Progress(auto_refresh=False) as progress:
        task = progress.add_task("kills", total=total)
        for outcome in outcomes:
            progress.update(task, advance=1, refresh=True)
            yield outcome


def show(outcomes: list[Outcome], seed: int) -> int:
    """Prints the table; gives the exit code."""
    table = Table("killed", "while", "cases", "equal", "seconds a case")
    cases = Counter((outcome.kind, outcome.moment) for outcome in outcomes)
    for (kind, moment), count in sorted(cases.items()):
        these = [outcome for outcome in outcomes if (outcome.kind, outcome.moment) == (kind, moment)]
        equal = sum(outcome.equal for outcome in these)
        seconds = sum(outcome.seconds for outcome in these) / count
        table.add_row(kind, moment, str(count), str(equal), f"{seconds:.1f}")
    console = Console(width=100) if not sys.stdout.isatty() else Console()
    console.print(table)
    failed = [outcome for outcome in outcomes if not outcome.equal]
    kills = sum(outcome.kills for outcome in outcomes)
    print(f"{len(outcomes)} cases, {kills} kills, {len(outcomes) - len(failed)} equal, seed {seed}")
    for outcome in failed:
        print(f"case {outcome.number} ({outcome.kind}, {outcome.moment}), seed {seed}: {outcome.detail}")
    return 1 if failed else 0


def main() -> int:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--local", type=int, default=180, help="cases of the local loop (cases)")
    parser.add_argument("--ray", type=int, default=20, help="cases through Ray (cases)")
    parser.add_argument("--seed", type=int, default=0, help="seed of kinds and moments")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept for a look at them")
    parser.add_argument("--record", type=Path, help="file of outcomes; what stands in it is not run again")
    options = parser.parse_args()
    done = kept(options.record)
    was_local = {outcome.number for outcome in done if outcome.kind in KINDS}
    was_through_ray = {outcome.number for outcome in done if outcome.kind not in KINDS}
    local = [number for number in range(options.local) if number not in was_local]
    through_ray = [number for number in range(options.ray) if number not in was_through_ray]
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = all_cases(local, through_ray, options.seed, folder.absolute())
        cases = tracked(keeping(cases, options.record), len(local) + len(through_ray))
        return show([*done, *cases], options.seed)


if __name__ == "__main__":
    sys.exit(main())
