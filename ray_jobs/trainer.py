"""A config as a Ray ``TorchTrainer`` run, run again where Ray's controller dies, and what its end means."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

from dfdet.config import Config
from dfdet.data.remote import is_url
from dfdet.hang.progress import group_timeout_s
from dfdet.runs.patience import patiently
from dfdet.runs.runfolder import CONTROLLER, RunFolder, open_run
from dfdet.runs.startup import Startup
from ray_jobs.notices import FOLDER, begin_attempt, begin_group
from ray_jobs.worker import enter, train_worker

logger = logging.getLogger(__name__)

PLACED, PLACED_ELASTIC, PLACED_IN_SWEEP = 2, 100, 1000
"""Starts that found no room, two minutes each, before the run is given up (by default Ray never does).
Elastic workers, which wait half a minute, meet one with each lost node; settings of a sweep wait for each
other's places where a node is lost."""

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
    in_sweep: bool = False,
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
            "folder": folder.place,
            "startup": asdict(startup or Startup()),
        },
        torch_config=_torch_config("nccl" if cuda else "gloo", group_timeout_s(config.engine.hang_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=config.run.workers,  # type: ignore[arg-type]
            use_gpu=cuda,
            resources_per_worker={"CPU": config.run.cpus_per_worker, **({"GPU": 1} if cuda else {})},
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            **_ray_storage(folder),
            failure_config=FailureConfig(
                max_failures=config.run.max_failures,
                controller_failure_limit=(  # type: ignore[call-arg]
                    PLACED_ELASTIC if elastic else PLACED_IN_SWEEP if in_sweep else PLACED
                ),
            ),
            callbacks=[_group_callback(folder.place, attempt, config), *callbacks],
        ),
    )


def _torch_config(backend: str, timeout_s: float) -> Any:
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

    return Config(backend=backend, timeout_s=int(timeout_s))


def _ray_storage(folder: RunFolder) -> dict[str, Any]:
    """Where Ray Train keeps its own records: in the run folder; for a run behind a URL in memory.

    Nothing is ever read of them, and there Ray would fail where the storage is away for a moment.
    """
    if not is_url(folder.place):
        return {"storage_path": str(folder.path / FOLDER)}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    memory = PyFileSystem(FSSpecHandler(fsspec.filesystem("memory")))
    return {"storage_path": f"/{FOLDER}", "storage_filesystem": memory}


def _group_callback(place: str, attempt: str, config: Config) -> Any:
    # Two hooks, DeveloperAPI of Ray 2.60 without a public path. The first is called in the controller
    # before each group starts; then a copy goes to each worker, where the second is called in the main
    # thread, in which alone signal handlers can be set: train_worker runs in another.
    from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback

    class GroupCallback(WorkerGroupCallback, WorkerCallback):
        def before_worker_group_start(self, worker_group_context: Any) -> None:
            with closing(open_run(place, config.data.cache_dir, CONTROLLER)) as run:
                what, patience_s = f"run folder {place}", config.engine.storage_patience_s
                self.name = patiently(lambda: begin_group(run, attempt), what, patience_s)

        def after_init_train_context(self) -> None:
            enter(self.name)

    return GroupCallback()


def fit(
    config: Config,
    folder: RunFolder,
    *,
    cuda: bool,
    callbacks: Sequence[Any] = (),
    startup: Startup | None = None,
    in_sweep: bool = False,
) -> BaseException | None:
    """Trains, and starts anew where the controller died, up to ``run.max_failures`` times.

    Args:
        config: Of the run.
        folder: Its folder, claimed.
        cuda: Whether workers have a GPU each.
        callbacks: Ray Train's, as to forward reports to Tune.
        startup: The clock of this start.
        in_sweep: Whether other settings may have the room, and leave it when they are done.

    Returns:
        What it failed with, None where it did not.
    """
    from ray.exceptions import RayActorError

    failures = 0
    while True:
        try:
            torch_trainer(
                config, folder, cuda=cuda, callbacks=callbacks, startup=startup, in_sweep=in_sweep
            ).fit()
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
            f"run.workers={run.workers}: no room for them in time, again and again; join more"
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
