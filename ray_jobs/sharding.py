"""Prepares videos as Ray tasks: results in order, bounded work in flight, detectors on GPUs as actors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dfdet.errors import ConfigError, InputError
from dfdet.runs.atomic import write_bytes_atomic
from ray_jobs.growth import cpus_to_ask
from ray_jobs.ordered import cause_of, in_order
from shards.detect import open_detector
from shards.detect.faces import Faces, Image
from shards.detect.geometry import enlarge, fit_frame, shrink
from shards.mapping import CRASHED, Mapper
from shards.plan import Job
from shards.prepare import Prepared, Preparer, failed
from shards.videos import Making

DETECTORS = "~/.cache/dfdet/detectors"
"""Where a node keeps detector files that only the driver's node has."""

RETRIES = 2
"""Times that a task is tried again when its worker or node dies."""

_open: dict[Making, Preparer] = {}


@dataclass(frozen=True)
class Actors:
    """Detector actors to start."""

    count: int
    gpus: float
    """GPUs of each."""


@dataclass(frozen=True)
class Task:
    """What all tasks of a run share; kept in the object store."""

    make: Making
    weights: Any
    """Reference to the detector's file, fetched only by processes whose node does not see it."""
    actors: tuple[Any, ...] = ()


def plan_actors(device: str, detector: str, actors: int, resources: dict[str, float]) -> Actors:
    """How many detector actors there will be, and with how much of a GPU.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        detector: ``retinaface`` or ``onnx``.
        actors: As the user asks; 0: one a GPU.
        resources: Of the cluster.

    Raises:
        ConfigError: CUDA is asked for and Ray has no GPU.
    """
    gpus = resources.get("GPU", 0.0) if detector == "retinaface" and device != "cpu" else 0.0
    if device == "cuda" and gpus < 1:
        raise ConfigError("--device cuda: Ray has no GPU; use --device cpu, or join a cluster with GPUs")
    count = actors or int(gpus)
    return Actors(count, min(1.0, gpus / count) if count else 0.0)


def in_tasks(make: Making, workers: int, actors: Actors) -> Mapper:
    """A mapper over Ray tasks of one CPU each.

    A task whose worker dies is tried again, also on another node; a video that kills its worker each
    time is recorded as failed.

    Args:
        make: Options and recipe.
        workers: Tasks at a time; 0: two for each CPU of the cluster.
        actors: Detector actors; with none, each worker process opens a detector of its own.
    """

    def run(jobs: Iterable[Job]) -> Iterator[Prepared]:
        file = make.detector.weights if make.detector else None
        weights = ray.put(file.read_bytes()) if file else None
        actor: Any = DetectorActor
        handles = tuple(
            actor.options(num_gpus=actors.gpus, max_restarts=3, max_task_retries=3).remote(make, weights)
            for _ in range(actors.count if make.detector else 0)
        )
        task = ray.put(Task(make, weights, handles))
        # Two a CPU keep each busy while this process writes a shard.
        at_once = workers or 2 * cpus_to_ask(ray.cluster_resources().get("CPU", 1))
        submit = prepare.options(max_retries=RETRIES).remote
        for job, ref in in_order(jobs, lambda job: submit(task, job), at_once):
            yield _result(job, ref, make)

    return run


def _result(job: Job, ref: Any, make: Making) -> Prepared:
    try:
        result: Prepared = ray.get(ref)
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError:
        return failed(job, CRASHED, make.dataset)
    return result


@ray.remote(num_cpus=1)
def prepare(task: Task, job: Job) -> Prepared:
    """Prepares one video; the process keeps its detector for the next."""
    return _preparer(task)(job)


def _preparer(task: Task) -> Preparer:
    """This process's preparer; a detector is opened once for all videos of a run."""
    if task.make not in _open:
        _open.clear()
        _open[task.make] = _opened(task)
    return _open[task.make]


def _opened(task: Task) -> Preparer:
    make, actors = task.make, task.actors
    if not make.options.root.is_dir():
        raise InputError(
            f"node {ray.util.get_node_ip_address()} does not see --root {make.options.root}; mount it on "
            "every node at the same path"
        )
    if actors:
        return make.with_detector(Remote(make, actors[os.getpid() % len(actors)]))
    return _with_weights(make, lambda: ray.get(task.weights))()


def _with_weights(make: Making, weights: Callable[[], bytes]) -> Making:
    """The recipe with the detector's file where this node has it; ``weights`` fetches its content.

    It stays in the node's cache, once for all workers: a killed one removes nothing.
    """
    if make.detector is None or Path(str(make.detector.weights)).is_file():
        return make
    content = weights()
    folder = Path(DETECTORS).expanduser() / hashlib.sha256(content).hexdigest()
    path = folder / Path(str(make.detector.weights)).name
    if not path.exists() or path.stat().st_size != len(content):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)
    return replace(make, detector=replace(make.detector, weights=path))


@ray.remote(num_cpus=0)
class DetectorActor:
    """A detector on its GPU, which batches the frames of one call."""

    def __init__(self, make: Making, weights: bytes) -> None:
        make = _with_weights(make, lambda: weights)
        assert make.detector is not None
        self.detector = open_detector(make.detector)

    def detect(self, frames: Sequence[Image]) -> list[Faces]:
        """Faces of each frame."""
        return self.detector(frames)


class Remote:
    """A detector actor as a :class:`Detector`: frames are shrunk here, so that little is sent."""

    def __init__(self, make: Making, actor: Any) -> None:
        assert make.detector is not None
        self.name, self.weights_sha256 = make.recipe.detector or "", make.recipe.detector_weights_sha256 or ""
        self.size_px, self.actor = make.detector.size_px, actor

    def __call__(self, frames: Sequence[Image]) -> list[Faces]:
        """Faces of each frame, in its own pixels."""
        fits = [fit_frame(frame.shape[1], frame.shape[0], self.size_px) for frame in frames]
        small = [shrink(frame, fit) for frame, fit in zip(frames, fits, strict=True)]
        found: list[Faces] = ray.get(self.actor.detect.remote(small))
        return [enlarge(faces, fit) for faces, fit in zip(found, fits, strict=True)]
