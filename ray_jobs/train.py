"""Trains a detector on a Ray cluster or on this machine.

    python ray_jobs/train.py [RECIPE] [--section.field VALUE ...]
    python ray_jobs/train.py --config runs/NAME/config.json [--section.field VALUE ...]
    ray job submit --working-dir . -- python ray_jobs/train.py

Without a recipe it runs `demo`, building the demo set if there is none.
"""

from __future__ import annotations

import os
import sys

from dfdet.cli import parse
from dfdet.config import Config
from dfdet.errors import DfdetError
from dfdet.recipes import RECIPES
from dfdet.runs.runfolder import RunFolder
from dfdet.runs.runlog import JsonLog, RunLog, log_to
from dfdet.runs.startup import Startup
from dfdet.runs.summary import show_result
from ray_jobs import failures
from ray_jobs.cluster import connect, with_config_file
from ray_jobs.preflight import build_demo_if_missing, check, with_absolute_paths
from ray_jobs.progress import Follower
from ray_jobs.watch import watch


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    startup = Startup.of_process()
    startup.mark("imports")
    try:
        if not argv:
            print(f"no recipe given: running demo (there are {', '.join(RECIPES)}; --help tells more)")
        config = with_absolute_paths(parse(with_config_file(argv), prog="train.py"))
        build_demo_if_missing(config)
        check(config)
        startup.mark("checks")
        return run(config, startup)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run(config: Config, startup: Startup) -> int:
    """Claims the run folder, trains, prints the result."""
    folder, status = RunFolder.claim(config.run.storage, str(config.run.name), config)
    try:
        if status == "finished":
            print(f"{folder.place}: already finished; its result:")
            show_result(folder.read_result() or {}, folder.named(folder.result_json))
            return 0
        log_to([RunLog(folder.log_txt), JsonLog(folder.path, "driver")])
        print(f"run folder: {folder.place}" + (" (resuming)" if status == "resume" else ""), flush=True)
        with Follower(folder.logs, folder.metrics_jsonl), folder.following():
            failure, signals = fit(config, folder, startup)
        return conclude(config, folder, failure, signals)
    finally:
        folder.release()


def fit(config: Config, folder: RunFolder, startup: Startup) -> tuple[BaseException | None, list[int]]:
    """Trains on the cluster; gives what it failed with and the signals received."""
    failures.forget(folder)
    cuda = connect(config)
    from ray_jobs import trainer

    startup.mark("ray")
    return watch(lambda: trainer.fit(config, folder, cuda=cuda, startup=startup), folder.request_stop)


def conclude(config: Config, folder: RunFolder, failure: BaseException | None, signals: list[int]) -> int:
    """Exit code of a run that ended, with its result or its one clear line printed."""
    ended = failures.ending(folder, config, None if signals else failure)
    if ended.status == "finished":  # whatever befell Ray afterwards
        show_result(folder.read_result() or {}, folder.named(folder.result_json))
        return 0
    if ended.status == "failed" and (not signals or failures.has_failed_for_good(folder)):
        failures.keep(folder, ended.message, failure)
        print(f"error: {ended.message} (log: {folder.named(folder.run_log)})", file=sys.stderr)
        return ended.code
    reason = "" if signals else f" ({ended.message})"
    print(f"stopped{reason}; go on with --run.name {folder.path.name}", flush=True)
    return 128 + signals[0] if signals else 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Ray does at exit would wait for a cluster that is gone
