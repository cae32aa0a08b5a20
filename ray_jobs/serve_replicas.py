"""The server's Ray Serve deployments: replicas that find faces, replicas that score crops in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from dfdet.data.decode import Pixels
from dfdet.errors import DfdetError
from dfdet.serving.answer import Asked, FoundFaces
from dfdet.serving.bundle import Bundle, Precision
from dfdet.serving.graph import Scored, open_graph
from dfdet.serving.metrics import Metrics
from dfdet.serving.refused import RefusedError, busy
from dfdet.serving.service import Find, Score
from ray_jobs.serve_faces import FaceFinder, Setting
from ray_jobs.serve_options import Share

logger = logging.getLogger(__name__)

KINDS = ("faces", "model")
"""Ends of the names of a server's applications."""
RETRIES = 2
"""Times that a call is made again when its replica dies."""
CALLS_A_FINDER = 16
"""Files that a replica holds, of which it looks at one: without any in stock it waits for Serve's router,
which looks for room at growing intervals. They are tried elsewhere if the replica dies."""
CALLS_A_MODEL = 256
"""Requests that a replica of the model holds at a time, to make batches of."""


@dataclass(frozen=True)
class Scoring:
    """All that a replica of the model needs; picklable."""

    bundle: Bundle
    precision: Precision
    device: str
    threads: int
    max_batch: int
    batch_wait_ms: float


class FacesReplica:
    """Finds the faces of one file at a time, in a thread, so that Ray hears of this process meanwhile."""

    def __init__(self, setting: Setting) -> None:
        self._find = FaceFinder(setting)
        self._thread = ThreadPoolExecutor(1)

    async def find(self, data: bytes, asked: Asked, limit_s: float) -> FoundFaces | RefusedError:
        """As :class:`~ray_jobs.serve_faces.FaceFinder`; a refusal is given back: Ray logs what is raised."""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._find, data, asked, limit_s)
        except RefusedError as error:
            return RefusedError(*error.args)


class ModelReplica:
    """Scores crops; those of several requests go through the model together."""

    def __init__(self, scoring: Scoring) -> None:
        self._graph = open_graph(scoring.bundle, scoring.precision, scoring.device, scoring.threads)
        self._thread = ThreadPoolExecutor(1)
        batched: Any = self._batched
        batched.set_max_batch_size(scoring.max_batch)
        batched.set_batch_wait_timeout_s(scoring.batch_wait_ms / 1000)

    async def score(self, crops: Sequence[Pixels]) -> list[Scored]:
        """Scores in the order of the crops."""
        return list(await asyncio.gather(*(self._batched(crop) for crop in crops)))

    @serve.batch
    async def _batched(self, crops: list[Pixels]) -> list[Scored]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._graph, crops)


def start(
    name: str, setting: Setting, scoring: Scoring, replicas: tuple[int, int], shares: tuple[Share, Share]
) -> tuple[DeploymentHandle, DeploymentHandle]:
    """Starts the replicas and waits until they are ready.

    Args:
        name: Of the application.
        setting: Of the replicas that find faces.
        scoring: Of the replicas of the model.
        replicas: Fewest and most of each kind; between them by load.
        shares: What one that finds faces and one of the model take.

    Returns:
        Handles of both kinds.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it warns of every busy moment
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    apps = (
        (f"{name}-{KINDS[0]}", FacesReplica, setting, shares[0], CALLS_A_FINDER),
        (f"{name}-{KINDS[1]}", ModelReplica, scoring, shares[1], CALLS_A_MODEL),
    )
    targets = [
        serve.RunTarget(
            _deployment(kind, share, replicas, calls).bind(given),
            name=each,
            route_prefix=None,
            logging_config=quiet,
        )
        for each, kind, given, share, calls in apps
    ]
    try:
        faces, model = serve.run_many(targets)
    except RuntimeError as error:  # Serve's, of many lines
        raise DfdetError(f"the replicas do not start: {last_line(error)}") from error
    return faces, model


def last_line(error: Exception) -> str:
    """Of an error that quotes a traceback."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
    )


def _deployment(kind: type, share: Share, replicas: tuple[int, int], calls: int) -> Any:
    low, high = replicas
    count: dict[str, Any] = {"num_replicas": low}
    if low != high:
        scaling = {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": 2}
        count = {"autoscaling_config": scaling}
    return serve.deployment(
        kind,
        max_ongoing_requests=calls,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        **count,
    )


def finder(handle: DeploymentHandle, metrics: Metrics) -> Find:
    """Finds faces in some replica."""

    async def find(data: bytes, asked: Asked, limit_s: float) -> FoundFaces:
        found: FoundFaces | RefusedError = await _retried(
            "faces", metrics, lambda: handle.find.remote(data, asked, limit_s)
        )
        if isinstance(found, RefusedError):
            raise found
        return found

    return find


def scorer(handle: DeploymentHandle, metrics: Metrics) -> Score:
    """Scores crops in some replica."""

    async def score(crops: Sequence[Pixels]) -> list[Scored]:
        found: list[Scored] = await _retried("model", metrics, lambda: handle.score.remote(list(crops)))
        return found

    return score


async def _retried(stage: str, metrics: Metrics, call: Callable[[], Any]) -> Any:
    """A call to a replica, made again on another if that one dies: it changes nothing, so twice is once."""
    for left in reversed(range(RETRIES + 1)):
        response = call()
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayTaskError:  # its own failure, not its death
            raise
        except RayActorError as error:
            logger.warning("a replica of %s died (%s)", stage, type(error).__name__)
            if not left:
                raise busy(f"the replicas for {stage} died {RETRIES + 1} times; come again") from error
            metrics.retries.labels(stage).inc()
    raise AssertionError("the last round returns or raises")
