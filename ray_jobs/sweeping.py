"""A sweep on Ray Tune: it runs the trials side by side, and asks our sweeper what to run and what to stop.

Ray Tune's own searcher for Optuna is not used: it tells Optuna that a stopped trial is complete, and its
state is a pickle beside the study. Here the study is all there is, so that a sweep resumes from it alone.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from dfdet.config import Config
from dfdet.errors import ConfigError, TrainingError
from dfdet.sweep.study import Done
from dfdet.sweep.sweeper import Assignment, Sweeper
from ray_jobs.cluster import room, settings
from ray_jobs.leftovers import without_leftovers
from ray_jobs.trial import FAILURE, train_setting

logger = logging.getLogger(__name__)

TUNE_FOLDER = "ray-tune"
"""Of a driver's folder: Ray Tune's own files, of no use once the driver has ended."""

NOT_KEPT = (str, ("kept by the study",))
"""What Ray Tune pickles, for a restore that nothing does, in place of what holds the study."""

DIED = "its process died without a word: killed, or out of memory"

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of its own state, which nothing reads
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def concurrency(config: Config, wanted: int, available: dict[str, float], *, cuda: bool) -> int:
    """How many settings train side by side.

    Args:
        config: Of a setting.
        wanted: 0 for as many as fit.
        available: The cluster's resources by kind.
        cuda: Whether workers have a GPU each.

    Raises:
        ConfigError: More are wanted than fit: with the arithmetic.
    """
    needs = {"CPU": config.run.cpus_per_worker, **({"GPU": 1.0} if cuda else {})}
    fits = room({kind: config.run.fewest_workers * need for kind, need in needs.items()}, available)
    if wanted <= fits:
        return wanted or fits
    run = config.run
    gpus = f" and 1 GPU (of {available.get('GPU', 0):g})" if cuda else ""
    raise ConfigError(
        f"--concurrent {wanted}: {wanted} settings x {run.fewest_workers} workers x"
        f" {run.cpus_per_worker:g} CPU (of {available.get('CPU', 0):g}){gpus} do not fit;"
        f" set --concurrent {fits}, or fewer --run.workers"
    )


def run_sweep(
    sweeper: Sweeper,
    concurrent: int,
    *,
    cuda: bool,
    train: Callable[[dict[str, Any]], None] = train_setting,
) -> BaseException | None:
    """Runs the sweep to its end or a stop; gives what it failed with.

    Args:
        sweeper: What to run.
        concurrent: Settings side by side.
        cuda: Whether workers have a GPU each.
        train: What a trial runs.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints whole tracebacks
    tune_folder = sweeper.driver / TUNE_FOLDER
    try:
        tuner = tune.Tuner(
            # Ray Train reserves what its workers need; the trial itself only waits
            tune.with_resources(train, {"memory": 1e6}),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(sweeper, cuda),
                scheduler=_scheduler(sweeper),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(tune_folder),
                # a trial whose process dies goes on from its run's newest checkpoint
                failure_config=tune.FailureConfig(max_failures=sweeper.base.run.max_failures),
                verbose=0,
            ),
        )
        with without_leftovers():
            tuner.fit()
    except Exception as error:  # noqa: BLE001 - whatever Tune raises, the study and the runs are safe
        return error
    finally:
        shutil.rmtree(tune_folder, ignore_errors=True)
    return TrainingError(sweeper.failure) if sweeper.failure else None


def crash(text: str | None) -> str:
    """What a trial died of, from the text that Ray Tune keeps of its error."""
    if not text or "ActorDiedError" in text or "ActorUnavailableError" in text:
        return DIED
    return text.strip().splitlines()[-1].strip()


def _searcher(sweeper: Sweeper, cuda: bool) -> Any:
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        """Asks the sweeper for settings, and tells it of their ends."""

        def __init__(self) -> None:
            super().__init__()
            self._assigned: dict[str, Assignment] = {}

        def suggest(self, trial_id: str) -> Any:
            found = sweeper.next()
            if isinstance(found, Done):
                return Searcher.FINISHED
            if found is None:
                return None
            self._assigned[trial_id] = found
            return {
                "phase": found.phase,
                "number": found.number,
                "configs": [config.model_dump(mode="json") for config in found.runs],
                "driver": str(sweeper.driver),
                "cuda": cuda,
                "settings": settings(),
            }

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            found = self._assigned.pop(trial_id, None)
            if found is not None:
                # an error has ended it already, with its reason
                sweeper.ended(found.phase, found.number, DIED if error else None)

        def __reduce__(self) -> Any:
            return NOT_KEPT

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the study is the state."""

    return StudySearcher()


def _scheduler(sweeper: Sweeper) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    class StudyScheduler(FIFOScheduler):
        """Hands reports to the sweeper, which asks a run to stop, and does not kill it.

        Killed, it would leave the places of its workers taken.
        """

        def __reduce__(self) -> Any:
            return NOT_KEPT

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            config = trial.config
            if "run_number" in result:
                sweeper.report(config["phase"], config["number"], result["run_number"], result)
            if FAILURE in result:
                sweeper.ended(config["phase"], config["number"], result[FAILURE])
            return str(FIFOScheduler.CONTINUE)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            phase, number, cause = trial.config["phase"], trial.config["number"], crash(trial.get_error())
            if trial.should_recover():
                logger.warning("%s %04d: %s; it is taken up again", phase, number, cause)
            else:
                sweeper.ended(phase, number, cause)

    return StudyScheduler()
