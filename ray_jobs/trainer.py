"""A config as a Ray ``TorchTrainer`` run, run again where Ray's controller dies, and what its end means."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from dfdet.config import Config
from dfdet.runs.runfolder import RunFolder
from dfdet.runs.startup import Startup
from ray_jobs.notices import FOLDER, begin_attempt
from ray_jobs.worker import heed_sigterm, train_worker

logger = logging.getLogger(__name__)

RESIZE_EVERY_S = 10.0
"""How often a resize of elastic workers is considered (seconds); each restarts the group, so those of
nodes that arrive together should come together."""


def torch_trainer(
    config: Config,
    folder: RunFolder,
    *,
    cuda: bool,
    callbacks: Sequence[Any] = (),
    startup: Startup | None = None,
) -> Any:
    """The trainer of one run: workers, restarts and storage from the config.

    Checkpoints are ours (``dfdet.checkpoints``): they outlive Ray and any number of workers. So Ray's
    own storage holds little, under a name of its own for each call. It begins a new attempt: workers
    of an earlier one leave the folder alone from now on.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from ray_jobs.lean import LeanTrainer

    trainer_class: Any = LeanTrainer
    elastic = not isinstance(config.run.workers, int)
    if elastic:
        from ray_jobs.elastic import ElasticTrainer

        trainer_class = partial(ElasticTrainer, config=config, run=folder)
    attempt = begin_attempt(folder)
    return trainer_class(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "folder": str(folder.path),
            "attempt": attempt,
            "startup": asdict(startup or Startup()),
        },
        torch_config=_torch_config("nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.run.workers,  # type: ignore[arg-type]
            use_gpu=cuda,
            resources_per_worker={"CPU": config.run.cpus_per_worker, **({"GPU": 1} if cuda else {})},
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder.path / FOLDER),
            failure_config=FailureConfig(
                max_failures=config.run.max_failures,
                # Starts that found no room, by default without an end. Elastic workers meet one with each
                # lost node.
                controller_failure_limit=100 if elastic else 2,  # type: ignore[call-arg]
            ),
            callbacks=[_sigterm_callback(), *callbacks],
        ),
    )


def _torch_config(backend: str) -> Any:
    """Torch's process group in each worker, as Ray makes it, but never taken down before the worker.

    Before it ends the workers of a group that failed or is resized, Ray Train destroys the process
    group in each; one that still runs would find itself alone, and train and save on as if it were.
    """
    from ray.train.torch import TorchConfig

    ray_backend: Any = TorchConfig().backend_cls

    class Backend(ray_backend):  # type: ignore[misc]
        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Nothing: the process ends next, and its group with it."""

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config(backend=backend)


def _sigterm_callback() -> Any:
    # Ray's hook into the main thread of a worker's process, where alone signal handlers can be set:
    # train_worker runs in another. A DeveloperAPI of Ray 2.60, without a public path.
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class SigtermCallback(WorkerCallback):
        def after_init_train_context(self) -> None:
            heed_sigterm()

    return SigtermCallback()


def fit(
    config: Config,
    folder: RunFolder,
    *,
    cuda: bool,
    callbacks: Sequence[Any] = (),
    startup: Startup | None = None,
) -> BaseException | None:
    """Trains, and starts anew where the controller died, up to ``run.max_failures`` times.

    Args:
        config: Of the run.
        folder: Its folder, claimed.
        cuda: Whether workers have a GPU each.
        callbacks: Ray Train's, as to forward reports to Tune.
        startup: The clock of this start.

    Returns:
        What it failed with, None where it did not.
    """
    from ray.exceptions import RayActorError

    failures = 0
    while True:
        try:
            torch_trainer(config, folder, cuda=cuda, callbacks=callbacks, startup=startup).fit()
            return None
        except RayActorError as error:  # TrainingFailedError is none: that one counts by itself
            failures += 1
            finished = (folder.read_result() or {}).get("status") == "finished"
            if finished or failures > config.run.max_failures or folder.stop_requested():
                return error
            logger.warning(
                "Ray Train's controller died (%s); starting another (%d of run.max_failures=%d)",
                type(error).__name__,
                failures,
                config.run.max_failures,
            )
        except Exception as error:  # noqa: BLE001 - TrainingFailedError and what else Ray raises
            return error


def explain(failure: BaseException, config: Config) -> str:
    """One line on what Ray Train failed with: value, cause, remedy."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    run = config.run
    if isinstance(failure, WorkerGroupError):
        rank, error = next(iter(failure.worker_failures.items()), (0, failure))
        return (
            f"run.max_failures={run.max_failures}: the workers failed once more than that; the last time"
            f" worker {rank} with {_brief(error)}; see the log, and start the same command again to go on"
            " from the newest checkpoint"
        )
    if isinstance(failure, ControllerError) and "Timeout" in type(failure.controller_failure).__name__:
        return (
            f"run.workers={run.workers}: no room for them within two minutes, again and again; join more"
            " nodes, or allow fewer as --run.workers LOW HIGH, and start the same command again"
        )
    if isinstance(failure, RayActorError):
        return (
            f"Ray Train's controller died ({_brief(failure)}), run.max_failures={run.max_failures} times"
            " and once more; start the same command again to go on from the newest checkpoint"
        )
    return _brief(failure)


def _brief(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
