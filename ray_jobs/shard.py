"""Turns the videos of a dataset into shard sets on a Ray cluster or on this machine.

    python ray_jobs/shard.py --dataset ffpp --root RAW --out SHARDS [--splits DIR] [--dry-run]
    ray job submit --working-dir . -- python ray_jobs/shard.py --dataset ffpp --root RAW --out SHARDS

The same without Ray: `python -m shards videos`. The same command goes on after a kill.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

import tyro
from pydantic import Field
from rich.console import Console

from dfdet.errors import DfdetError
from ray_jobs.cluster import absolute, absolute_out, input_file, join_or_start
from ray_jobs.sharding import in_tasks, plan_actors
from shards import report
from shards.options import VideoSets
from shards.progress import show_progress
from shards.videos import find, make_video_sets, making

PATHS = {
    "root": absolute,
    "out": absolute_out,
    "splits": input_file,
    "labels": input_file,
    "weights": input_file,
}
"""What makes each path absolute; the last three are read by the driver alone."""


class ShardJob(VideoSets):
    """Turn videos (or images, or ready face crops) of a dataset into the shard sets NAME-SPLIT."""

    actors: int = Field(0, ge=0)
    """Detector actors; 0: one a GPU if retinaface may use GPUs, else each task has its own detector."""


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        options: Any = tyro.cli(ShardJob, prog="shard.py", args=argv, use_underscores=True)
        return run(with_absolute_paths(options))
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def with_absolute_paths(options: ShardJob) -> ShardJob:
    """The options with paths that mean the same in every process."""
    given = {name: getattr(options, name) for name in PATHS}
    found = {name: Path(PATHS[name](str(path))) for name, path in given.items() if path is not None}
    return options.model_copy(update=found)


def run(options: ShardJob) -> int:
    """Finds, tells, and unless it is a dry run prepares and writes."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    found = find(options)
    for each in report.before(found, all_missing=options.dry_run):
        console.print(each, soft_wrap=True, highlight=False, markup=False)
    if options.dry_run:
        return 0
    make = making(options, found)
    import ray

    resources = join_or_start()
    # After Ray's own handler: finished parts stay, and what is half done is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        actors = plan_actors(options.device, options.detector, options.actors, resources)
        with show_progress("videos") as progress:
            made = make_video_sets(
                make,
                found,
                lambda: in_tasks(make, options.workers, actors),
                progress=progress,
            )
    finally:
        ray.shutdown()
    for each in report.after(made):
        console.print(each, soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
