"""The study of a sweep: which settings there are, who trains each, what came of them.

Optuna's study is the single truth. Every change is made under a lock of the sweep's folder, so that
drivers on several hosts share one study, and is durable when the call returns. A *setting* is a trial of
the study; it is RUNNING from :meth:`SweepStudy.next` until it is told complete, pruned or failed, and
``user_attrs["driver"]`` names the driver that trains it. When that one is gone, however it died, the
next driver that asks gets the same number with the same values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from dfdet.errors import ConfigError, DfdetError, RunFolderError
from dfdet.runs.patience import cause
from dfdet.sweep.drivers import Drivers
from dfdet.sweep.header import claim, full_header
from dfdet.sweep.objective import Objective
from dfdet.sweep.search import Search
from dfdet.sweep.storage import load, open_storage, told

__all__ = ["Ask", "Done", "Search", "SweepStudy", "TrialTakenError"]

logger = logging.getLogger(__name__)


class TrialTakenError(DfdetError):
    """A setting that another driver trains now, as this one seemed to be gone; stop training it."""


@dataclass(frozen=True)
class Ask:
    """A setting to train."""

    number: int
    """Of the trial in its study, from 0."""
    values: dict[str, Any]
    """By dotted path, for ``Config.replace``."""
    attrs: dict[str, Any]
    """The trial's attributes so far, ``published`` among them."""
    resumed: bool
    """Whether a driver that is gone had begun with it."""


@dataclass(frozen=True)
class Done:
    """Nothing is left to start, and nothing runs anywhere that could come back."""


class SweepStudy:
    """One driver's hold on a study; see the module. Safe to use from one thread at a time."""

    def __init__(self, study: optuna.Study, drivers: Drivers, search: Search | None) -> None:
        self.study = study
        """Optuna's own, to read from."""
        self.search, self.drivers = search, drivers
        self._storage = study._storage
        study.pruner = (search.pruner if search else None) or NopPruner()

    @classmethod
    def open(
        cls,
        folder: Path,
        url: str | None,
        *,
        name: str,
        objectives: Sequence[Objective],
        header: dict[str, Any],
        search: Search | None = None,
        patience_s: float = 600.0,
    ) -> Self:
        """Makes a study or opens it again, as one more driver.

        Args:
            folder: Of the sweep, on storage that all its drivers see; made where it is not there.
            url: Of a database (see :func:`~dfdet.sweep.storage.open_storage`); None: a journal in the
                folder.
            name: Of the study in its storage.
            objectives: What is searched for.
            header: ``base``, ``space`` and ``options`` of the sweep as JSON, kept with the study.
            search: How settings are proposed; None: there are those of :meth:`enqueue` only.
            patience_s: How long a storage that is full or away is tried again (seconds).

        Raises:
            ConfigError: A storage that cannot be used; a study of another sweep, with the difference;
                a space that does not go with its trials.
            RunFolderError: A damaged journal, or a folder that cannot be written.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        drivers: Drivers | None = None
        try:
            drivers = Drivers(folder, patience_s)
            with drivers.locked(), told(name):
                study = load(open_storage(folder, url, patience_s), name, objectives)
                claim(study, drivers.home(), full_header(header, objectives))
                if search:
                    search.check(study.get_trials(deepcopy=False))
            return cls(study, drivers, search)
        except BaseException as error:
            if drivers:
                drivers.leave()
            if isinstance(error, OSError):
                raise RunFolderError(
                    f"sweep {folder}: cannot be written ({cause(error)}); give a writable --run.storage"
                ) from error
            raise

    def close(self) -> None:
        """Lets others take up what this driver has not ended; again is harmless."""
        self.drivers.leave()
        self._storage.remove_session()

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; they are shared: change none."""
        return self.study.get_trials(deepcopy=False)

    # ---- what to train

    def next(self, limit: int) -> Ask | Done | None:
        """The next setting to train: one that a dead driver left, else a queued one, else a new one.

        Args:
            limit: Settings of the study that may be begun, all drivers' and earlier ones counted; without
                a search it does not matter.

        Returns:
            None where there may be more later: settings still run, and their driver may die.
        """
        with self._locked():
            self._end_stopped(self._orphans())
            trials = self.trials()
            for orphan in self._orphans():
                logger.info("setting %d: taken up again, as its driver is gone", orphan.number)
                self.study.sampler = self._sampler(orphan.number)
                return self._hand_out(optuna.Trial(self.study, orphan._trial_id), resumed=True)
            if self._may_begin(trials, limit):
                waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
                self.study.sampler = self._sampler(waiting[0] if waiting else len(trials))
                return self._hand_out(self.study.ask(), resumed=False)
            return None if any(trial.state == TrialState.RUNNING for trial in trials) else Done()

    def _orphans(self) -> list[FrozenTrial]:
        """Running trials without a live driver, as after a kill even within :meth:`next`."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        gone = self.drivers.gone({driver for trial in running if (driver := _driver(trial))})
        return [trial for trial in running if _driver(trial) in gone | {None}]

    def _end_stopped(self, orphans: Sequence[FrozenTrial]) -> None:
        """Ends those that their driver was told to stop before it died."""
        for trial in orphans:
            if "stopped_epoch" in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.PRUNED)

    def _may_begin(self, trials: Sequence[FrozenTrial], limit: int) -> bool:
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        if self.search is None:
            return waiting > 0
        begun = len(trials) - waiting
        return begun < limit and (waiting > 0 or not self.search.exhausted(trials))

    def _sampler(self, number: int) -> BaseSampler:
        if self.search is None:
            return RandomSampler(number)  # draws nothing: values are given
        return self.search.proposer(number)

    def _hand_out(self, trial: optuna.Trial, resumed: bool) -> Ask:
        if "values" not in trial.user_attrs:
            assert self.search, "queued without values"
            trial.set_user_attr("values", self.search.space.suggest(trial, self.search.base))
        trial.set_user_attr("driver", self.drivers.me)
        attrs = trial.user_attrs
        return Ask(trial.number, attrs["values"], attrs, resumed)

    def enqueue(self, name: str, values: dict[str, Any], attrs: dict[str, Any] | None = None) -> bool:
        """Queues a setting of known values, once in the study's life.

        Args:
            name: Of the setting, unique in its study.
            values: By dotted path. In a search what they do not name stays as the base config has it,
                and they count towards the limit.
            attrs: Attributes of the trial, as ``{"published": name}``.

        Returns:
            Whether it is new.

        Raises:
            ConfigError: The space has no such setting.
        """
        with self._locked():
            if any(trial.user_attrs.get("queued") == name for trial in self.trials()):
                return False
            kept = {**(attrs or {}), "queued": name}
            if self.search is None:
                self.study.enqueue_trial({}, user_attrs={**kept, "values": values})
                return True
            fitting = self.search.space.fits(values, self.search.base)
            if isinstance(fitting, str):
                raise ConfigError(f"setting {name}: {fitting}")
            self.study.enqueue_trial(fitting, user_attrs=kept)
        return True

    def publish(self, points: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Queues published settings, each once and marked with its name.

        Returns:
            Why the others, by name, are no settings of the space.
        """
        refused = {}
        for name, values in points.items():
            try:
                self.enqueue(name, values, {"published": name})
            except ConfigError as error:
                refused[name] = str(error)
        return refused

    # ---- what came of it: all these raise TrialTakenError where another driver trains it now

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Takes the objective after an epoch; the first report of an epoch counts.

        Returns:
            Whether the setting is to be stopped now: the pruner's word, which a repeated report of that
            epoch, or a later one, gets again. Never with several objectives, and never of a published
            setting: it is what the others are compared with.
        """
        with self._held(number) as trial:
            if (stopped := trial.user_attrs.get("stopped_epoch")) is not None:
                return epoch >= stopped
            if epoch in trial.intermediate_values or len(self.study.directions) > 1:
                return False
            self._storage.set_trial_intermediate_value(trial._trial_id, epoch, float(value))
            if "published" in trial.user_attrs:
                return False
            stop = self.study.pruner.prune(self.study, self._storage.get_trial(trial._trial_id))
            if stop:
                self._set(trial, {"stopped_epoch": epoch})
            return stop

    def set_attrs(self, number: int, attrs: dict[str, Any]) -> None:
        """Sets attributes of a setting that this driver trains."""
        with self._held(number) as trial:
            self._set(trial, attrs)

    def complete(self, number: int, values: Sequence[float], attrs: dict[str, Any] | None = None) -> None:
        """Ends a setting with a value an objective; one that is not finite makes it a failed one."""
        bad = [value for value in values if not math.isfinite(value)]
        if bad:
            self._end(number, TrialState.FAIL, {**(attrs or {}), "reason": f"an objective is {bad[0]}"})
        else:
            self._end(number, TrialState.COMPLETE, attrs or {}, values)

    def prune(self, number: int, epoch: int) -> None:
        """Ends a setting that was stopped early, with the value reported last."""
        self._end(number, TrialState.PRUNED, {"stopped_epoch": epoch})

    def fail(self, number: int, reason: str) -> None:
        """Ends a setting that cannot be trained; it counts towards the limit and is not tried again."""
        self._end(number, TrialState.FAIL, {"reason": reason})

    def _end(
        self, number: int, state: TrialState, attrs: dict[str, Any], values: Sequence[float] | None = None
    ) -> None:
        with self._held(number) as trial:
            self._set(trial, attrs)
            self.study.tell(number, values, state)

    def _set(self, trial: FrozenTrial, attrs: dict[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_trial_user_attr(trial._trial_id, key, value)

    @contextmanager
    def _held(self, number: int) -> Iterator[FrozenTrial]:
        """The lock, and a trial that is this driver's own."""
        with self._locked():
            trial = self.trials()[number]
            if trial.state != TrialState.RUNNING or _driver(trial) != self.drivers.me:
                raise TrialTakenError(
                    f"setting {number}: is not this driver's any more ({trial.state.name.lower()}); another"
                    " one took it up, as this one gave no sign of life for a minute"
                )
            yield trial

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.drivers.locked(), told(self.study.study_name):
            yield


def _driver(trial: FrozenTrial) -> str | None:
    """Who trains it; None where a kill came before that was recorded."""
    return trial.user_attrs.get("driver")
