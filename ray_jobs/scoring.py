"""Slices of an evaluation scored by Ray actors; one that dies is started again with its slice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dfdet.errors import ConfigError, TrainingError
from dfdet.evaluation.options import Options
from dfdet.evaluation.scorer import Part, Scorer, Slice, Work
from ray_jobs.cluster import room, wants_cuda
from ray_jobs.ordered import cause_of

RESTARTS = 3
"""Times that a worker is started again after its process or node died."""


def uses_cuda(options: Options, resources: dict[str, float]) -> bool:
    """Whether workers have a GPU each."""
    return wants_cuda(options.device, resources)


def count_workers(options: Options, slices: int, resources: dict[str, float]) -> int:
    """How many workers score.

    Raises:
        ConfigError: More are wanted than there is room for, or there is room for none.
    """
    needs = {"CPU": options.cpus_per_worker, **({"GPU": 1.0} if uses_cuda(options, resources) else {})}
    fits = room(needs, resources)
    if max(1, options.workers) > fits:
        asked = ", ".join(f"{need:g} {kind}" for kind, need in needs.items())
        have = ", ".join(f"{resources.get(kind, 0.0):g} {kind}" for kind in needs)
        remedy = f"set --workers {fits}" if fits else "set --device cpu, or fewer --cpus_per_worker"
        raise ConfigError(f"--workers {options.workers}: each takes {asked}, but Ray has {have}; {remedy}")
    return min(options.workers or fits, max(1, slices))


def scored(
    work: Work, slices: Sequence[Slice], workers: int, *, cuda: bool, stopping: Callable[[], bool]
) -> Iterator[tuple[Slice, Part]]:
    """Scores of slices as they come, in no order.

    Args:
        work: What is scored.
        slices: To be scored.
        workers: Actors at most.
        cuda: Whether each has a GPU.
        stopping: Asked between slices; no further ones are begun then.

    Raises:
        DfdetError: Of a worker; or one died again and again.
    """
    waiting = deque(slices)
    actors = [_start(work, cuda) for _ in range(min(workers, len(waiting)))]
    running: dict[Any, tuple[Any, Slice]] = {}
    while waiting or running:
        idle = [actor for actor in actors if all(actor is not busy for busy, _ in running.values())]
        while idle and waiting and not stopping():
            part = waiting.popleft()
            actor = idle.pop()
            running[actor.score.remote(part)] = actor, part
        if not running:
            return
        [done], _ = ray.wait(list(running), num_returns=1)
        _, part = running.pop(done)
        yield part, _result(done)


def _start(work: Work, cuda: bool) -> Any:
    options = work.options
    actor: Any = ScoringActor
    return actor.options(
        num_cpus=options.cpus_per_worker,
        num_gpus=1 if cuda else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    ).remote(work, "cuda" if cuda else "cpu")


def _result(ref: Any) -> Part:
    try:
        part: Part = ray.get(ref)
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayActorError as error:
        raise TrainingError(
            f"a scoring worker died {RESTARTS} times and once more: killed, or out of memory; set a smaller"
            " --batch, and give the same --out to go on"
        ) from error
    return part


@ray.remote
class ScoringActor:
    """A :class:`Scorer` in a process of its own."""

    def __init__(self, work: Work, device: str) -> None:
        import torch

        threads = max(1, int(work.options.cpus_per_worker))
        torch.set_num_threads(threads)
        self.scorer = Scorer(work, device, threads)

    def score(self, part: Slice) -> Part:
        """Scores of a slice."""
        return self.scorer.score(part)
