"""Ray tasks whose results come in the order of their jobs, a bounded number under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from dfdet.errors import DfdetError
from shards.mapping import IN_FLIGHT

Job = TypeVar("Job")


def in_order(jobs: Iterable[Job], submit: Callable[[Job], Any], at_once: int) -> Iterator[tuple[Job, Any]]:
    """Each job with the reference of its task, which has ended.

    Args:
        jobs: Taken as there is room for them.
        submit: Starts the task of a job and gives its reference.
        at_once: Tasks at a time.
    """
    todo = iter(jobs)
    waiting: deque[tuple[Job, Any]] = deque()
    unfinished: set[Any] = set()
    job = next(todo, None)
    while job is not None or waiting:
        while job is not None and len(unfinished) < at_once and len(waiting) < IN_FLIGHT * at_once:
            waiting.append((job, submit(job)))
            unfinished.add(waiting[-1][1])
            job = next(todo, None)
        if waiting[0][1] in unfinished:
            done, _ = ray.wait(list(unfinished), num_returns=1)
            unfinished.difference_update(done)
        else:
            yield waiting.popleft()


def cause_of(error: RayTaskError) -> Exception:
    """Our own error that a task ended with; another as Ray tells it."""
    return error.cause if isinstance(error.cause, DfdetError) else error
