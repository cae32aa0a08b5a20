"""What runs in a Ray Train worker: our loop with Ray's context, its log and its failures recorded."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from dfdet.config import Config, from_dict
from dfdet.hang.verdict import Hang, line
from dfdet.hang.watchdog import STACKS, Watchdog
from dfdet.runs.runfolder import RunFolder, open_run
from dfdet.runs.runlog import JsonConsole, JsonLog, RunLog, log_to
from dfdet.runs.startup import Startup
from ray_jobs import failures
from ray_jobs.network import meet_other_nodes
from ray_jobs.notices import check_current, checkpoint_wanted, is_superseded

logger = logging.getLogger(__name__)

LAST_CALL_S = 15.0
"""Before a node's announced end (seconds): time for a second checkpoint, of what followed the first."""

GROUP: list[str] = []
"""Name of the group of workers that this process belongs to."""

SIGNALLED = threading.Event()
"""This process has been sent SIGTERM."""

TERMINATED = threading.Event()
"""It lives on after that: the signal was not Ray's, see :func:`on_sigterm`."""

LOOK_EVERY_S = 1.0
"""How often a worker looks whether others have taken its place (seconds)."""

RAYS_KILL_S = 1.0
"""Ray ends a worker by SIGTERM and, a tenth of a second later, SIGKILL (seconds, with room)."""


class RayContext:
    """A Ray Train worker's surroundings.

    Args:
        config: Of the run.
        run: Its folder.
        group: The group of workers that this one belongs to, as ``notices.begin_group`` named it.
        startup: The clock of this start.
    """

    def __init__(self, config: Config, run: RunFolder, group: str, startup: Startup) -> None:
        import ray.train
        import ray.train.torch

        from ray_jobs.cluster import PREEMPTION_WATCHER
        from ray_jobs.tracking import Trackers

        context = ray.train.get_context()
        self.run = run
        self.group = group
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
        check_current(self.run, self.group)
        self.run.append_metrics(metrics)
        self.trackers.record(metrics)

    def stop_reason(self) -> str | None:
        """The reason that lies in the run folder, or that this process was sent SIGTERM.

        Raises:
            SupersededError: Another attempt or group has begun.
        """
        check_current(self.run, self.group)
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
    """``train_loop_per_worker``: ``args`` holds the config, the run's place and the start's clock."""
    import ray.train

    config = from_dict(args["config"])
    role = f"rank-{ray.train.get_context().get_world_rank()}"
    run = open_run(args["folder"], config.data.cache_dir, role, GROUP[-1])
    try:
        _train(args, config, run)
    finally:
        run.close()


def _train(args: dict[str, Any], config: Config, run: RunFolder) -> None:
    threading.Thread(target=leave_when_superseded, args=(run, GROUP[-1]), daemon=True).start()
    startup = startup_of(args, run)
    startup.mark("workers")
    from dfdet.train import train

    startup.mark("worker imports")
    if failures.has_failed_for_good(run):
        return  # leave together, without a word
    context = RayContext(config, run, GROUP[-1], startup)
    if context.rank == 0:
        failures.forget_hang(run)
        drop_repeated(run)
    log_to(log_handlers(run, context.rank))
    try:
        with watched(config, context):
            train(config, context)
    except Exception as error:
        if not is_superseded(run, context.group):
            failures.record(run, context.rank, error)
        raise
    finally:
        context.close()


def drop_repeated(run: RunFolder) -> None:
    """Drops the records of workers that were lost before their first checkpoint: their steps come again."""
    if not any(run.checkpoints.glob("step_*")):
        run.truncate_metrics(0)


def log_handlers(run: RunFolder, rank: int) -> list[logging.Handler]:
    """Where a worker logs: the run folder, and what Ray keeps of its stderr."""
    handlers: list[logging.Handler] = [JsonLog(run.path, f"rank-{rank}", rank), JsonConsole(run.path, rank)]
    return [RunLog(run.log_txt), *handlers] if rank == 0 else handlers


def watched(config: Config, context: RayContext) -> Watchdog:
    """Ends this worker when training hangs; Ray starts all of them again."""
    run, rank = context.run, context.rank

    def tell(hang: Hang) -> None:
        if not is_superseded(run, context.group):
            failures.record_hang(run, rank, hang, line(hang, run.named(run.path / STACKS)))

    return Watchdog(
        config.engine.hang_timeout_s,
        rank,
        context.world_size,
        run.path / STACKS,
        tell,
        lambda: run.publish(f"{STACKS}/rank-{rank}.txt"),
        ends_frozen=True,
    )


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


def enter(group: str) -> None:
    """Makes this process a worker of the group, in its main thread and before anything else."""
    GROUP.append(group)
    heed_sigterm()
    meet_other_nodes()


def leave_when_superseded(run: RunFolder, group: str) -> None:
    """Ends this process once others have taken its place: its node was cut off, and Ray cannot end it.

    It could write into their folder, and would wait long for workers that are gone.
    """
    while not is_superseded(run, group):
        time.sleep(LOOK_EVERY_S)
    print(f"run folder {run.path}: belongs to later workers; this one ends", file=sys.stderr, flush=True)
    os._exit(1)
