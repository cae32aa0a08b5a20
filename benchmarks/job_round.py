"""A head, jobs submitted to it, and the table of how they ended, for ``benchmarks/jobs.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from tests.dfdet.serving.bundles import Made
from tests.ray_jobs.jobs import Head, Job

RAN, STOPPED, REFUSED, KILLED = ("SUCCEEDED", 0), ("STOPPED", None), ("FAILED", 2), ("FAILED", 137)
WORKERS = ("RayTrainWorker", "TrainController", "ImplicitFunc", "prepare", "predict", "ScoringActor")
"""What must be gone after the end of a job."""


@dataclass
class Round:
    """A head, what jobs work on, and what came of them so far."""

    head: Head
    folder: Path
    made: Made
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    bad: int = 0

    def submit(self, program: str, case: str, *words: object) -> Job:
        """A job of a program of ``ray_jobs``, under a name of its own."""
        name = f"{program}-{case.replace(' ', '-')}"
        return self.head.submit(name, f"ray_jobs/{program}.py", *map(str, words))

    def tell(self, program: str, case: str, job: Job, expected: tuple[str, int | None], problem: str) -> None:
        """Adds a row; ``problem`` is empty where the outputs are right."""
        details = job.ended()
        ended = (str(details.status.value), details.driver_exit_code)
        if not problem and ended != expected:
            problem = f"ended as {ended}, not {expected}: {job.last_line()}"
        if not problem and expected == REFUSED:
            shown = job.last_line() in self.head.ray("status", job.name).stdout
            problem = "" if shown else "`ray job status` does not show the last line"
        if left := psutil.wait_procs(self.head.processes(*WORKERS), timeout=60)[1]:
            problem = problem or f"processes left: {left}"
        code = "" if ended[1] is None else str(ended[1])
        self.rows.append((f"{program}.py", case, ended[0], code, problem or "as it should be"))
        self.bad += bool(problem)
        print(*self.rows[-1], sep="  ", flush=True)

    def stop(self, job: Job) -> None:
        """``ray job stop``, which waits for the end."""
        self.head.ray("stop", job.name)

    def disturbed(
        self, program: str, words: list[object], begun: Callable[[], bool], again: list[object] | None = None
    ) -> Job:
        """Stops a job once it has begun, kills the driver of the next, and lets the third end.

        Args:
            program: Of ``ray_jobs``.
            words: Its arguments.
            begun: Whether a job has got somewhere, and further than when it was last asked.
            again: Arguments with which the job goes on; None: the same.
        """
        first = self.submit(program, "to be stopped", *words)
        first.until(begun)
        self.stop(first)
        self.tell(program, "ray job stop", first, STOPPED, "")
        second = self.submit(program, "to be killed", *(again or words))
        second.until(lambda: second.details().driver_info and begun())
        second.kill()
        self.tell(program, "driver killed", second, KILLED, "")
        third = self.submit(program, "to the end", *(again or words))
        third.ended()
        return third


class Grown:
    """Whether a count is larger by some than when this was last true.

    Args:
        count: Gives it.
        by: How much larger.
    """

    def __init__(self, count: Callable[[], int], by: int = 1) -> None:
        self.count, self.by, self.last = count, by, 0

    def __call__(self) -> bool:
        """Whether it is."""
        now = self.count()
        grown = now >= self.last + self.by
        self.last = now if grown else self.last
        return grown
