"""Runs jobs in processes of this machine: results in order, bounded work in flight, crashes survived."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from shards.plan import Job
from shards.prepare import Prepared

Mapper = Callable[[Iterable[Job]], Iterator[Prepared]]
"""Prepares jobs; results come in the order of the jobs, whatever does the work."""
Make = Callable[[], Callable[[Job], Prepared]]
Crashed = Callable[[Job, str], Prepared]

IN_FLIGHT = 4
"""Videos under way or waiting to be written, a worker."""
CRASHED = "crashed the process that read it"

_preparer: Callable[[Job], Prepared] | None = None


def in_processes(
    make: Make,
    crashed: Crashed,
    workers: int,
) -> Mapper:
    """A mapper over spawned processes.

    A job that kills its process (a decoder's bug, the kernel's memory killer) is found by running
    the jobs under way again, each in a process of its own.

    Args:
        make: Makes the preparer in each process; picklable.
        crashed: The record of a job that killed its process, with the reason.
        workers: Processes; 0: as many as CPUs.
    """
    count = workers or cpus()

    def run(jobs: Iterable[Job]) -> Iterator[Prepared]:
        todo = iter(jobs)
        while (broken := (yield from _until_crash(make, todo, count))) is not None:
            for job in broken:
                yield _alone(make, crashed, job)

    return run


def here(make: Make) -> Mapper:
    """A mapper in this very process, for debugging and tests."""
    return lambda jobs: map(make(), jobs)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _until_crash(make: Make, todo: Iterator[Job], count: int) -> Generator[Prepared, None, list[Job] | None]:
    """Yields results; returns the jobs under way if a process died, else None."""
    waiting: deque[tuple[Job, Future[Prepared] | None]] = deque()
    with _pool(make, count) as pool:
        try:
            for job in todo:
                waiting.append((job, None))  # So that it is not lost if the pool breaks right here.
                waiting[-1] = (job, pool.submit(_prepare, job))
                if len(waiting) > IN_FLIGHT * count:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        except BrokenProcessPool:
            return [job for job, _ in waiting]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return None


def _first(waiting: deque[tuple[Job, Future[Prepared] | None]]) -> Prepared:
    future = waiting[0][1]
    assert future is not None
    result = future.result()  # Removed only now: a crash leaves it among those under way.
    waiting.popleft()
    return result


def _alone(make: Make, crashed: Crashed, job: Job) -> Prepared:
    with _pool(make, 1) as pool:
        try:
            return pool.submit(_prepare, job).result()
        except BrokenProcessPool:
            return crashed(job, CRASHED)


def _pool(make: Make, count: int) -> ProcessPoolExecutor:
    # A spawned process inherits no lock of a thread and no open file.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawn, initializer=_start, initargs=(make,))


def _start(make: Make) -> None:
    global _preparer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent alone answers it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _preparer = make()


def _end_with_parent() -> None:
    """A parent that was killed leaves no process behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(job: Job) -> Prepared:
    assert _preparer is not None
    return _preparer(job)
