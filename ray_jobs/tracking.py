"""Trackers of a run on Ray: TensorBoard, W&B and MLflow, and Ray's Prometheus endpoint.

W&B and MLflow go through Ray's own integrations; where they are and who one is there is theirs to
read from the environment (``WANDB_API_KEY``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``): nothing of it
is in the config.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import time
from pathlib import PurePosixPath
from typing import Any

from dfdet.config import Config, leaves
from dfdet.data.remote import is_url
from dfdet.errors import ConfigError
from dfdet.runs.runfolder import RunFolder
from dfdet.runs.tracking import Background, TensorBoard, Tracker, numbers
from ray_jobs.cluster import joins_cluster
from ray_jobs.prometheus import Prometheus

RUN_TAG = "dfdet.run"
"""MLflow's tag by which a resumed run is found."""
MLFLOW_RETRIES, MLFLOW_TIMEOUT_S = "3", "30"
"""Of one request; MLflow's own values are 7 and 120 s, which outlast the end of a run."""


def check(config: Config) -> None:
    """Refuses, before any worker starts, trackers that cannot work.

    Raises:
        ConfigError: A package is missing, or W&B has no key.
    """
    for name in config.run.track:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.track={name}: the package {name} is not installed; pip install '.[track]' (on all"
                " nodes), or leave it out of --run.track"
            )
    if "wandb" in config.run.track and not joins_cluster() and not _wandb_ready():
        raise ConfigError(
            "run.track=wandb: there is no API key; run `wandb login`, or set WANDB_API_KEY, or"
            " WANDB_MODE=offline to send the run later with `wandb sync`"
        )

    if "mlflow" in config.run.track and not joins_cluster():
        mlflow_uri(config.run.storage)


def mlflow_uri(storage: str) -> str:
    """MLflow's server, or a database beside the runs.

    Raises:
        ConfigError: Runs lie behind a URL, where there can be no database.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given and is_url(storage):
        raise ConfigError(
            f"run.track=mlflow: run.storage={storage} can hold no database; set MLFLOW_TRACKING_URI to a"
            " server's address on all nodes, or leave mlflow out of --run.track"
        )
    return given or f"sqlite:///{storage}/mlflow.db"


def _wandb_ready() -> bool:
    if os.environ.get("WANDB_MODE") in {"offline", "disabled"} or os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.api.api_key)


class Trackers:
    """All that a worker's records go to besides the run folder; only the first rank has any.

    Args:
        config: Of the run.
        run: Its folder.
        rank: This worker among all.
    """

    def __init__(self, config: Config, run: RunFolder, rank: int) -> None:
        self._trackers: list[Tracker] = []
        if rank:
            return
        self._trackers += [Prometheus(run, rank), TensorBoard(run.path / "tensorboard")]
        if "wandb" in config.run.track:
            self._trackers.append(Background("W&B", functools.partial(WandbRun, config, run)))
        if "mlflow" in config.run.track:
            self._trackers.append(Background("MLflow", functools.partial(MlflowRun, config, run)))

    def record(self, metrics: dict[str, Any]) -> None:
        """Hands a record to all, at once."""
        for tracker in self._trackers:
            tracker.record(metrics)

    def close(self) -> None:
        """Sends what is left."""
        for tracker in self._trackers:
            tracker.close()


def dotted(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's fields by their dotted paths; sequences as text."""
    flat = leaves(tree)
    return {k: " ".join(map(str, value)) if isinstance(value, list) else value for k, value in flat.items()}


def run_id(run: RunFolder) -> str:
    """The run's name to trackers: its folder's, and a part of a hash of where that lies.

    The same on a resume, and another for a run of the same name elsewhere.
    """
    place = hashlib.sha256(run.place.encode()).hexdigest()[:8]
    return f"{run.path.name[:100]}-{place}"


class WandbRun:
    """A W&B run; its files lie in ``<run>/wandb``. Runs of one storage folder are a group (a sweep)."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        import wandb
        from ray.air.integrations.wandb import setup_wandb

        self._run = setup_wandb(
            config=dotted(config.model_dump(mode="json")),
            rank_zero_only=False,  # Trackers has chosen the rank
            project=config.run.track_project,
            group=os.environ.get("WANDB_RUN_GROUP") or PurePosixPath(run.place).parent.name,
            id=run_id(run),
            name=run.path.name,
            dir=str(run.path),
            resume="allow",
            mode=os.environ.get("WANDB_MODE"),  # W&B itself reads it once in a process
            settings=wandb.Settings(console="off", silent=True),
        )

    def record(self, metrics: dict[str, Any]) -> None:
        """Sends a record; W&B itself leaves out steps that it has from before a resume."""
        self._run.log(numbers(metrics), step=int(metrics["step"]))

    def close(self) -> None:
        """Sends what is left and ends the run there."""
        self._run.finish()


class MlflowRun:
    """An MLflow run; without ``MLFLOW_TRACKING_URI`` in ``<storage>/mlflow.db``."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", MLFLOW_TIMEOUT_S)
        from mlflow import MlflowClient

        uri = mlflow_uri(run.place.rpartition("/")[0])
        self._client = MlflowClient(tracking_uri=uri)
        found = self._find(config.run.track_project, run_id(run))
        self._id = found or self._start(config, run, uri)
        self._seen = self._seen_steps()
        if found:
            self._client.update_run(self._id, status="RUNNING")

    def _find(self, experiment: str, name: str) -> str | None:
        """The run that an earlier process began."""
        place = self._client.get_experiment_by_name(experiment)
        if place is None:
            return None
        runs = self._client.search_runs([place.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _start(self, config: Config, run: RunFolder, uri: str) -> str:
        from ray.air.integrations.mlflow import setup_mlflow

        mlflow = setup_mlflow(
            config=dotted(config.model_dump(mode="json")),
            tracking_uri=uri,
            experiment_name=config.run.track_project,
            run_name=run.path.name,
            create_experiment_if_not_exists=True,
            tags={RUN_TAG: run_id(run), "group": PurePosixPath(run.place).parent.name},
            rank_zero_only=False,  # Trackers has chosen the rank
        )
        return str(mlflow.active_run().info.run_id)

    def _seen_steps(self) -> dict[str, int]:
        """The newest step that MLflow has of each metric: it would keep a repeated one twice."""
        metrics = self._client.get_run(self._id).data.metrics
        return {
            name: max(point.step for point in self._client.get_metric_history(self._id, name))
            for name in metrics
        }

    def record(self, metrics: dict[str, Any]) -> None:
        """Sends a record, without what it has from before a resume."""
        from mlflow.entities import Metric

        step, now = int(metrics["step"]), time.time_ns() // 1_000_000
        named = {name.replace("@", "_at_"): value for name, value in numbers(metrics).items()}
        new = [
            Metric(name, value, now, step) for name, value in named.items() if step > self._seen.get(name, -1)
        ]
        self._client.log_batch(self._id, metrics=new)

    def close(self) -> None:
        """Ends the run there."""
        self._client.set_terminated(self._id)
