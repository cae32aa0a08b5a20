"""Predicts on files in this process or as Ray tasks: results in order, a bounded number under way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfdet.checkpoints.opened import Opened
from dfdet.errors import ConfigError, InputError
from dfdet.prediction.records import Prediction
from ray_jobs.own_files import Target
from ray_jobs.predictor import Ask, Predictor, damaged
from shards.mapping import CRASHED

RETRIES = 2
"""Times that a file is tried again when its worker or node dies."""
TASKS_A_GPU = 2
"""One reads and finds faces on its CPU while the other scores."""

_open: dict[Ask, Predictor] = {}


@dataclass(frozen=True)
class Tasks:
    """What runs at a time, and what each takes."""

    count: int
    cpus: int
    gpus: float


def plan_tasks(workers: int, threads: int, resources: dict[str, float], *, cuda: bool) -> Tasks:
    """How many tasks run at a time, with what share of the cluster.

    Args:
        workers: As the user asks; 0: two a GPU, else as many as there are CPUs for.
        threads: CPU threads of each.
        resources: Of the cluster.
        cuda: Whether the model runs on GPUs.

    Raises:
        ConfigError: No task fits.
    """
    cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0.0) if cuda else 0.0
    if cuda and gpus < 1:
        raise ConfigError("--device cuda: Ray has no GPU; use --device cpu, or join a cluster with GPUs")
    if threads > cpus:
        raise ConfigError(f"--threads {threads}: Ray has {cpus} CPUs; give at most as many")
    room = cpus // threads
    count = min(workers or (TASKS_A_GPU * int(gpus) if cuda else room), room)
    return Tasks(count, threads, min(1.0, gpus / count) if cuda else 0.0)


def here(ask: Ask, opened: Opened, targets: Iterable[Target]) -> Iterator[Prediction]:
    """Predicts in this very process."""
    return map(Predictor(ask, opened), targets)


def in_tasks(ask: Ask, tasks: Tasks, targets: Iterable[Target]) -> Iterator[Prediction]:
    """Predicts as Ray tasks, in the order of the files.

    A task whose worker dies is tried again, also on another node; a file that kills its worker each time
    is recorded as damaged.
    """
    import ray

    from ray_jobs.ordered import in_order

    shared = ray.put(ask)
    task = ray.remote(predict).options(num_cpus=tasks.cpus, num_gpus=tasks.gpus, max_retries=RETRIES)
    for target, ref in in_order(targets, lambda target: task.remote(shared, target), tasks.count):
        yield _result(target, ref, ask)


def _result(target: Target, ref: Any, ask: Ask) -> Prediction:
    import ray
    from ray.exceptions import RayError, RayTaskError

    from ray_jobs.ordered import cause_of

    try:
        result: Prediction = ray.get(ref)
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError:
        return damaged(ask, target, CRASHED)
    return result


def predict(ask: Ask, target: Target) -> Prediction:
    """Predicts on one file; the process keeps its checkpoint and detector for the next."""
    folder = target.path.parent
    if not folder.is_dir():
        raise InputError(f"{_node()} does not see {folder}; mount it on every node at the same path")
    if ask.out is not None and not Path(ask.out).is_dir():
        raise InputError(f"{_node()} does not see --out {ask.out}; mount it on every node at the same path")
    if ask not in _open:
        _open.clear()
        _open[ask] = Predictor(ask)
    return _open[ask](target)


def _node() -> str:
    import ray

    return f"node {ray.util.get_node_ip_address()}"
