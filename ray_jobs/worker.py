"""What runs in a Ray Train worker: our loop with Ray's context, its log and its failures recorded."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from dfdet.config import Config, from_dict
from dfdet.runs.runfolder import RunFolder
from dfdet.runs.runlog import RunLog, log_to
from dfdet.runs.startup import Startup
from ray_jobs import failures
from ray_jobs.notices import check_current, checkpoint_wanted

logger = logging.getLogger(__name__)

LAST_CALL_S = 15.0
"""Before a node's announced end (seconds): time for a second checkpoint, of what followed the first."""

SIGNALLED = threading.Event()
"""This process has been sent SIGTERM."""

TERMINATED = threading.Event()
"""It lives on after that: the signal was not Ray's, see :func:`on_sigterm`."""

RAYS_KILL_S = 1.0
"""Ray ends a worker by SIGTERM and, a tenth of a second later, SIGKILL (seconds, with room)."""


class RayContext:
    """A Ray Train worker's surroundings.

    Args:
        config: Of the run.
        run: Its folder.
        attempt: The attempt that this worker belongs to, as ``notices.begin_attempt`` named it.
        startup: The clock of this start.
    """

    def __init__(self, config: Config, run: RunFolder, attempt: str, startup: Startup) -> None:
        import ray.train
        import ray.train.torch

        from ray_jobs.cluster import PREEMPTION_WATCHER
        from ray_jobs.tracking import Trackers

        context = ray.train.get_context()
        self.run = run
        self.attempt = attempt
        self.startup = startup
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.trackers = Trackers(config, run, self.rank)
        self._report = ray.train.report
        # all ranks meet in it, so all must call it or none: the variable is the controller's
        watched = os.environ.get(PREEMPTION_WATCHER) == "1"
        self._preemption_info = ray.train.get_preemption_info if watched else None
        self._heeded: list[Any] = [None, None]

    def report(self, metrics: dict[str, Any]) -> None:
        """Hands plain numbers to Ray Train, and so to Tune."""
        self._report(metrics)

    def record(self, metrics: dict[str, Any]) -> None:
        """Keeps the metrics in the run folder and with the trackers."""
        check_current(self.run, self.attempt)
        self.run.append_metrics(metrics)
        self.trackers.record(metrics)

    def stop_reason(self) -> str | None:
        """The reason that lies in the run folder, or that this process was sent SIGTERM.

        Raises:
            SupersededError: Another attempt has begun.
        """
        check_current(self.run, self.attempt)
        if TERMINATED.is_set() and self.run.stop_requested() is None:
            self.run.request_stop(f"SIGTERM to worker {self.rank}")
        return self.run.stop_requested() if self.rank == 0 or TERMINATED.is_set() else None

    def in_danger(self) -> bool:
        """Whether there is news: of a node of the run that goes away, or that a checkpoint is wanted.

        Each notice once, and once more shortly before a node's announced end.
        """
        heeded, self._heeded = self._heeded, [self._preemption(), self._wanted()]
        danger = any(new is not None and new != old for new, old in zip(self._heeded, heeded, strict=True))
        if danger and self._heeded[0] != heeded[0] and self.rank == 0:
            logger.warning("%s: saving a checkpoint", _describe(self._heeded[0][0]))
        return danger

    def _preemption(self) -> tuple[Any, bool] | None:
        info = self._preemption_info() if self._preemption_info else None
        if info is None:
            return None
        return info, info.deadline_ms is not None and time.time() > info.deadline_ms / 1000 - LAST_CALL_S

    def _wanted(self) -> int | None:
        return checkpoint_wanted(self.run) if self.rank == 0 else None

    def close(self) -> None:
        """Sends what the trackers still hold."""
        self.trackers.close()


def _describe(info: Any) -> str:
    """Ray's notice of nodes that go away, in one line."""
    left_s = None if info.deadline_ms is None else info.deadline_ms / 1000 - time.time()
    end = "soon" if left_s is None else f"in {left_s:.0f} s"
    return f"the nodes of workers {info.preempted_ranks} go away {end}"


def train_worker(args: dict[str, Any]) -> None:
    """``train_loop_per_worker``: ``args`` holds the config, the run folder's path and the attempt."""
    run = RunFolder(Path(args["folder"]))
    startup = startup_of(args, run)
    startup.mark("workers")
    from dfdet.train import train

    startup.mark("worker imports")
    if failures.has_failed_for_good(run):
        return  # leave together, without a word
    config = from_dict(args["config"])
    context = RayContext(config, run, args["attempt"], startup)
    if context.rank == 0:
        log_to([RunLog(run.log_txt)])
    try:
        train(config, context)
    except Exception as error:
        failures.record(run, context.rank, error)
        raise
    finally:
        context.close()


def startup_of(args: dict[str, Any], run: RunFolder) -> Startup:
    """The driver's clock; one of this worker's own after a restart, when the command is long past."""
    startup = Startup(**args["startup"])
    restarted = run.metrics_jsonl.exists() and run.metrics_jsonl.stat().st_mtime > startup.begun
    return Startup() if restarted else startup


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """Lets the loop save a checkpoint and end; a second signal ends the process at once.

    Not until it is clear that it is not Ray who ends this worker, to start others in its place: a
    request to stop, left in the run folder in that tenth of a second, would stop those.
    """
    if SIGNALLED.is_set():
        os._exit(128 + number)
    SIGNALLED.set()
    timer = threading.Timer(RAYS_KILL_S, TERMINATED.set)
    timer.daemon = True
    timer.start()


def heed_sigterm() -> None:
    """Takes SIGTERM over from Ray, which would end this process; only in its main thread."""
    signal.signal(signal.SIGTERM, on_sigterm)
