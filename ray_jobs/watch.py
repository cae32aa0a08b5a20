"""Work on Ray in a thread, while the main thread heeds signals and asks whether Ray still answers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ray_jobs.cluster import JOINED_PATIENCE_S, LOCAL_PATIENCE_S, Pulse, RayLostError, joins_cluster

POLL_S = 0.2
"""How often the driver looks at its threads (seconds)."""


STOPPING = "stopping at the next log step, with a checkpoint"


def watch(
    work: Callable[[], BaseException | None],
    ask_to_stop: Callable[[str], None],
    stopping: str = STOPPING,
) -> tuple[BaseException | None, list[int]]:
    """Does the work until it ends or Ray is gone.

    Args:
        work: Gives what it failed with, None where it did not.
        ask_to_stop: Called with the name of the first signal (SIGINT, SIGTERM); a second one ends the
            process at once.
        stopping: What is printed then.

    Returns:
        What it failed with, and the signals received. Ray is shut down, unless it is gone: its
        shutdown would wait for that.
    """
    import ray

    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - the main thread tells what it was
            outcome.append(error)

    # Handlers come after Ray's own, and Ray Train installs one only if it is called in the main thread.
    with _signals(ask_to_stop, stopping) as received:
        thread = threading.Thread(target=run, name="ray-work", daemon=True)
        thread.start()
        pulse = Pulse(JOINED_PATIENCE_S if joins_cluster() else LOCAL_PATIENCE_S)
        try:
            while thread.is_alive():
                thread.join(POLL_S)
                pulse.check(POLL_S)
        except RayLostError as error:
            return error, received
    ray.shutdown()
    return outcome[0], received


@contextmanager
def _signals(ask_to_stop: Callable[[str], None], stopping: str) -> Iterator[list[int]]:
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        print(f"{stopping} (again to stop at once)", flush=True)
        ask_to_stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
