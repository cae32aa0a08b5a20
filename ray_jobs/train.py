"""Trains a detector on a Ray cluster or on this machine.

    python ray_jobs/train.py [RECIPE] [--section.field VALUE ...]
    python ray_jobs/train.py --config runs/NAME/config.json [--section.field VALUE ...]
    ray job submit --working-dir . -- python ray_jobs/train.py

Without a recipe it runs `demo`, building the demo set if there is none.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dfdet import paths
from dfdet.cli import parse
from dfdet.config import Config
from dfdet.data.sets import open_run_data
from dfdet.errors import DfdetError
from dfdet.recipes import DEMO_SHARDS, RECIPES
from dfdet.runs.runfolder import RunFolder, default_name
from dfdet.runs.runlog import RunLog, log_to
from dfdet.runs.startup import Startup
from dfdet.runs.summary import show_result
from ray_jobs import failures, tracking
from ray_jobs.cluster import (
    JOINED_PATIENCE_S,
    LOCAL_PATIENCE_S,
    Pulse,
    RayLostError,
    absolute,
    check_local,
    connect,
    home,
    joins_cluster,
)
from ray_jobs.progress import Follower

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How often the driver looks at its threads (seconds)."""


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    startup = Startup.of_process()
    startup.mark("imports")
    try:
        if not argv:
            print(f"no recipe given: running demo (there are {', '.join(RECIPES)}; --help tells more)")
        config = with_absolute_paths(parse(argv, prog="train.py"))
        build_demo_if_missing(config)
        check(config)
        startup.mark("checks")
        return run(config, startup)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def with_absolute_paths(config: Config) -> Config:
    """The config with every path absolute and its run named, so that it means the same anywhere."""
    config = paths.with_absolute_paths(config, home())
    return config.replace({"run.name": config.run.name or default_name(config.run.recipe)})


def build_demo_if_missing(config: Config) -> None:
    """Builds the demo set where the config asks for it and it is not there."""
    if paths.missing_demo_sets(config, home()):
        from shards.demo import build
        from shards.progress import show_progress

        folder = Path(absolute(DEMO_SHARDS))
        print(f"building the demo set in {folder}", flush=True)
        with show_progress("demo videos") as progress:
            build(folder, progress=progress)


def check(config: Config) -> None:
    """Refuses, before any worker starts, what would fail in all of them."""
    open_run_data(config)
    from dfdet.model.backbone import check_backbone

    check_backbone(config.model)
    tracking.check(config)
    check_local(config)


def run(config: Config, startup: Startup) -> int:
    """Claims the run folder, trains, prints the result."""
    folder, status = RunFolder.claim(Path(config.run.storage), str(config.run.name), config)
    try:
        if status == "finished":
            print(f"{folder.path}: already finished; its result:")
            show_result(folder.read_result() or {}, folder.result_json)
            return 0
        log_to([RunLog(folder.log_txt)])
        print(f"run folder: {folder.path}" + (" (resuming)" if status == "resume" else ""), flush=True)
        with Follower(folder.log_txt, folder.metrics_jsonl):
            failure, signals = fit(config, folder, startup)
        return conclude(config, folder, failure, signals)
    finally:
        folder.release()


def fit(config: Config, folder: RunFolder, startup: Startup) -> tuple[BaseException | None, list[int]]:
    """Trains on the cluster; gives what it failed with and the signals received."""
    failures.forget(folder)
    cuda = connect(config)
    import ray

    from ray_jobs import trainer

    startup.mark("ray")
    outcome: list[BaseException | None] = []
    # Handlers come after Ray's own, and Ray Train installs one only if it is called in the main thread.
    with stop_on_signals(folder) as signals:
        thread = threading.Thread(
            target=lambda: outcome.append(trainer.fit(config, folder, cuda=cuda, startup=startup)),
            name="ray-train",
            daemon=True,
        )
        thread.start()
        pulse = Pulse(JOINED_PATIENCE_S if joins_cluster() else LOCAL_PATIENCE_S)
        try:
            while thread.is_alive():
                thread.join(POLL_S)
                pulse.check(POLL_S)
        except RayLostError as error:
            return error, signals  # without ray.shutdown(): it would wait for what is gone
    ray.shutdown()
    return (outcome[0] if outcome else None), signals


def conclude(config: Config, folder: RunFolder, failure: BaseException | None, signals: list[int]) -> int:
    """Exit code of a run that ended, with its result or its one clear line printed."""
    if recorded := failures.read(folder):
        return _failed(folder, *recorded)
    result = folder.read_result()
    if result and result["status"] == "finished":  # whatever befell Ray afterwards
        show_result(result, folder.result_json)
        return 0
    if failure is not None and not signals:
        from ray_jobs.trainer import explain

        message = str(failure) if isinstance(failure, DfdetError) else explain(failure, config)
        return _failed(folder, message, 1, failure)
    if signals:
        print(f"stopped; go on with --run.name {folder.path.name}", flush=True)
        return 128 + signals[0]
    if result and result["status"] == "stopped":
        print(f"stopped ({result['reason']}); go on with --run.name {folder.path.name}", flush=True)
        return 1
    return _failed(folder, "the workers ended without a result", 1)


def _failed(folder: RunFolder, message: str, code: int, cause: BaseException | None = None) -> int:
    logger.error("%s", message, exc_info=cause)
    folder.write_result({"status": "failed", "message": message, "metrics": {}})
    print(f"error: {message} (log: {folder.log_txt})", file=sys.stderr)
    return code


@contextmanager
def stop_on_signals(folder: RunFolder) -> Iterator[list[int]]:
    """SIGINT and SIGTERM ask the workers for a checkpoint and an end; a second one ends at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        print("stopping at the next log step, with a checkpoint (again to stop at once)", flush=True)
        folder.request_stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Ray does at exit would wait for a cluster that is gone
