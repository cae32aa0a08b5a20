"""Takes back the real-time priority that an encoder gives itself.

SVT-AV1 puts its threads and its caller's on the highest one wherever it may, as a container's root may; each
of them then goes before everything else on the machine, Ray's heartbeats included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

THREADS = Path("/proc/self/task")


@contextmanager
def without_real_time() -> Iterator[None]:
    """Threads that come, or change, in the block run as the caller did before it."""
    if not THREADS.exists():  # no Linux
        yield
        return
    policy, given = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in [int(path.name) for path in THREADS.iterdir()]:
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) in {os.SCHED_FIFO, os.SCHED_RR}:
                    os.sched_setscheduler(thread, policy, given)
