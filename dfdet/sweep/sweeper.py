"""A driver's part in a sweep: which runs to start next, whether one stops early, what came of them.

Everything durable is in the study and the run folders; this object may die at any moment. It knows
nothing of Ray: who runs the assignments only calls :meth:`Sweeper.next`, :meth:`Sweeper.report` and
:meth:`Sweeper.ended`.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfdet.config import Config
from dfdet.runs.atomic import write_bytes_atomic
from dfdet.runs.runfolder import RunFolder, read_metrics
from dfdet.sweep import finals
from dfdet.sweep.objective import Objective
from dfdet.sweep.options import Options
from dfdet.sweep.study import Ask, Done, SweepStudy, TrialTakenError

logger = logging.getLogger(__name__)

FRESH_SEED = 1000
"""The last runs' seeds begin this far above those of the search."""


@dataclass(frozen=True)
class Assignment:
    """A setting to train."""

    phase: Literal["search", "final"]
    number: int
    """Of the trial in its study."""
    runs: tuple[Config, ...]
    """One a seed, each with its folder's name."""
    begun: float
    """By the monotonic clock (seconds)."""
    spent_s: float
    """What earlier drivers had spent on it (seconds)."""


STOP = "stop"
"""File of a driver's folder that asks settings, as yet without a run folder, not to begin."""


class Sweeper:
    """Hands out settings and takes their results.

    Args:
        folder: Of the sweep; its run folders lie in it.
        base: The recipe's config.
        options: Of the sweep.
        objectives: What is searched for.
        search: The study of the search.
        final: The study of the last runs.
    """

    def __init__(
        self,
        folder: Path,
        base: Config,
        options: Options,
        objectives: list[Objective],
        search: SweepStudy,
        final: SweepStudy,
    ) -> None:
        self.folder, self.base, self.options, self.objectives = folder, base, options, objectives
        self.search, self.final = search, final
        self.stopping: str | None = None
        """Why no further setting is started."""
        self.failure: str | None = None
        """What ended the sweep before its time."""
        self.running: dict[tuple[str, int], Assignment] = {}
        self._early: dict[int, int] = {}
        """Settings of the search that were asked to stop, and after which epoch."""
        self._finals_planned = False
        self._lock = threading.RLock()

    @property
    def header(self) -> dict[str, Any]:
        """What the sweep was begun with: base config, space, options."""
        return dict(self.search.study.user_attrs["header"])

    @property
    def driver(self) -> Path:
        """Folder of this driver while it lives."""
        return self.search.drivers.folder / self.search.drivers.me

    def next(self) -> Assignment | Done | None:
        """The next setting to train; None to ask again later."""
        with self._lock:
            if self.stopping:
                return Done()
            found = self.search.next(self.options.trials)
            while isinstance(found, Ask) and "stopped_epoch" in found.attrs:
                # its driver died while it was being stopped
                self.search.prune(found.number, found.attrs["stopped_epoch"])
                found = self.search.next(self.options.trials)
            if isinstance(found, Ask):
                return self._assign("search", found, self._seeds())
            if found is None or not self.options.final or len(self.objectives) > 1:
                return found
            return self._next_final()

    def _next_final(self) -> Assignment | Done | None:
        if not self._finals_planned:
            self._finals_planned = True
            self._plan_finals()
        found = self.final.next(0)
        if isinstance(found, Ask):
            return self._assign("final", found, [int(found.attrs["seed"])])
        return found

    def _plan_finals(self) -> None:
        """Queues the last runs: the best settings and the published ones, each on every fresh seed."""
        trials = {trial.number: trial for trial in self.search.trials()}
        chosen = finals.choose(list(trials.values()), self.options.final, self.objectives[0].direction)
        first = self.base.run.seed + FRESH_SEED
        for number in chosen:
            for seed in range(first, first + self.options.final_seeds):
                attrs = {"setting": number, "seed": seed}
                if published := trials[number].user_attrs.get("published"):
                    attrs["published"] = published
                self.final.enqueue(f"{number}/{seed}", trials[number].user_attrs["values"], attrs)

    def _seeds(self) -> list[int]:
        return list(range(self.base.run.seed, self.base.run.seed + self.options.seeds))

    def _assign(self, phase: Literal["search", "final"], ask: Ask, seeds: list[int]) -> Assignment:
        setting = ask.attrs["setting"] if phase == "final" else ask.number
        stem = f"{'final-' if phase == 'final' else ''}{setting:04d}"
        names = [stem if len(seeds) == 1 and phase == "search" else f"{stem}-s{seed}" for seed in seeds]
        place: dict[str, Any] = {"run.storage": str(self.folder)}
        if phase == "search":
            place["data.test"] = ()  # a test set is for what was chosen, not for choosing
        runs = tuple(
            self.base.replace(ask.values | place | {"run.name": name, "run.seed": seed})
            for name, seed in zip(names, seeds, strict=True)
        )
        self._study(phase).set_attrs(ask.number, {"runs": names})
        assignment = Assignment(phase, ask.number, runs, time.monotonic(), ask.attrs.get("wall_s", 0.0))
        self.running[phase, ask.number] = assignment
        return assignment

    def _study(self, phase: str) -> SweepStudy:
        return self.search if phase == "search" else self.final

    def report(self, phase: str, number: int, run_number: int, metrics: dict[str, Any]) -> None:
        """Takes a report of a run; one that is not worth going on with is asked to stop.

        It is asked, not killed: its workers leave their places in order, at their next log step. Only
        the first seed's reports are compared: all settings have had it for as long.
        """
        epoch, value = metrics.get("epoch"), metrics.get(self.objectives[0].metric)
        compared = phase == "search" and not run_number and len(self.objectives) == 1
        with self._lock:
            assignment = self.running.get((phase, number))
            if assignment is None or number in self._early:
                return
            try:
                self._study(phase).set_attrs(number, self._time(assignment))
                if not compared or epoch is None or value is None:
                    return
                if self.search.report(number, int(epoch), float(value)):
                    self._early[number] = int(epoch)
                    self._ask_to_stop(assignment, f"stopped early after epoch {int(epoch)}")
            except TrialTakenError as error:
                logger.warning("%s", error)
                self._ask_to_stop(assignment, str(error))

    def ended(self, phase: str, number: int, crash: str | None) -> None:
        """Takes the end of an assignment, as its run folders tell it.

        Args:
            phase: Of the assignment.
            number: Of the assignment.
            crash: What its process died of, where the run folders do not tell.
        """
        with self._lock:
            assignment = self.running.pop((phase, number), None)
            if assignment is None:
                return
            try:
                self._end(assignment, crash)
            except TrialTakenError as error:
                logger.warning("%s", error)

    def _end(self, assignment: Assignment, crash: str | None) -> None:
        study, number = self._study(assignment.phase), assignment.number
        results = [self._run(config).read_result() or {} for config in assignment.runs]
        if all(result.get("status") == "finished" for result in results):
            self._complete(study, assignment, results)
            return
        if assignment.phase == "search" and (epoch := self._early.pop(number, None)) is not None:
            study.set_attrs(number, self._cost(assignment))
            study.prune(number, epoch)
            return
        reason = next((r["message"] for r in results if r.get("status") == "failed"), crash)
        if reason is None or (self.stopping and crash is None):
            return  # asked to stop: it stays to be taken up again
        study.set_attrs(number, self._cost(assignment))
        study.fail(number, reason)
        self._count_failures(reason)

    def _complete(self, study: SweepStudy, assignment: Assignment, results: list[dict[str, Any]]) -> None:
        scores = {
            str(config.run.seed): [objective.value(result) for objective in self.objectives]
            for config, result in zip(assignment.runs, results, strict=True)
        }
        columns = list(zip(*scores.values(), strict=True))
        if any(value is None for column in columns for value in column):
            named = ", ".join(objective.metric for objective in self.objectives)
            study.fail(assignment.number, f"the run's result lacks a value of {named}")
            return
        means = [statistics.fmean(column) for column in columns]
        attrs: dict[str, Any] = {"seed_scores": scores} | self._cost(assignment)
        if len(scores) > 1:
            attrs["spread"] = statistics.stdev(columns[0])
        study.complete(assignment.number, means, attrs)

    def _cost(self, assignment: Assignment) -> dict[str, Any]:
        """What the setting has cost: epochs of all its runs, and seconds under all drivers."""
        records = [read_metrics(self._run(config).metrics_jsonl) for config in assignment.runs]
        epochs = sum(max((record.get("epoch", 0) for record in of_run), default=0) for of_run in records)
        return {"epochs": epochs} | self._time(assignment)

    def _time(self, assignment: Assignment) -> dict[str, float]:
        """Of a driver that was killed, up to its last report."""
        wall_s = assignment.spent_s + time.monotonic() - assignment.begun
        workers = assignment.runs[0].run.fewest_workers
        return {"wall_s": round(wall_s, 2), "worker_s": round(wall_s * workers, 2)}

    def _run(self, config: Config) -> RunFolder:
        return RunFolder(self.folder / str(config.run.name))

    def _count_failures(self, reason: str) -> None:
        failed = sum(
            trial.state.name == "FAIL" for study in (self.search, self.final) for trial in study.trials()
        )
        if failed > self.options.max_failed:
            self.failure = (
                f"{failed} settings failed, more than --max_failed {self.options.max_failed}; the last one:"
                f" {reason}; mend the cause or raise --max_failed, and go on with"
                f" --resume {self.folder.name}"
            )
            self.stop("too many settings failed")

    def stop(self, reason: str) -> None:
        """Starts nothing further, and asks all runs that are under way for a checkpoint and an end."""
        with self._lock:
            self.stopping = self.stopping or reason
            write_bytes_atomic(self.driver / STOP, reason.encode())
            for assignment in self.running.values():
                self._ask_to_stop(assignment, reason)

    def _ask_to_stop(self, assignment: Assignment, reason: str) -> None:
        for config in assignment.runs:
            run = self._run(config)
            if run.path.exists():
                run.request_stop(reason)
