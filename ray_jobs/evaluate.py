"""Scores checkpoints on shard sets: metrics with intervals, robustness, comparison, one report.

python ray_jobs/evaluate.py --checkpoint runs/NAME --test cdfv2=SET.json dfdc=SET.json
python ray_jobs/evaluate.py --checkpoint runs/A runs/B --val ffpp=SET.json --test cdfv2=SET.json
python ray_jobs/evaluate.py --checkpoint runs/NAME --test cdfv2=SET.json --robustness all --out FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from dfdet import cli
from dfdet.errors import DfdetError
from dfdet.evaluation.folder import Folder, default_out
from dfdet.evaluation.options import Options
from dfdet.evaluation.outcome import conclude, show
from dfdet.evaluation.request import Request, open_request
from dfdet.runs.runlog import RunLog, log_to
from ray_jobs.cluster import (
    absolute,
    absolute_out,
    absolute_source,
    join_or_start,
    joins_cluster,
    local_resources,
)
from ray_jobs.scoring import count_workers, scored, uses_cuda
from ray_jobs.watch import watch
from shards.progress import show_progress

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    try:
        options = with_absolute_paths(cli.parse_flags(Options, argv, "evaluate.py"))
        request = open_request(options)
        if not joins_cluster():
            count_workers(options, len(request.slices), local_resources())
        return run(request)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def with_absolute_paths(options: Options) -> Options:
    """The options with every path absolute; URLs and ``hf:`` names as they are."""
    cache = options.cache_dir
    return options.model_copy(
        update={
            "checkpoint": tuple(map(absolute_source, options.checkpoint)),
            "test": _absolute_sets(options.test),
            "val": _absolute_sets(options.val),
            "out": absolute_out(options.out or default_out()),
            # the home folder of a user is each node's own
            "cache_dir": cache if cache.startswith("~") else absolute(cache),
            "pretrained": absolute(options.pretrained) if options.pretrained else None,
        }
    )


def _absolute_sets(entries: tuple[str, ...]) -> tuple[str, ...]:
    named = (entry.partition("=") for entry in entries)
    return tuple(f"{name}={absolute(path)}" for name, _, path in named)


def run(request: Request) -> int:
    """Scores what is not scored yet, and leaves the result in the folder."""
    folder = Folder(Path(str(request.options.out)), request.record())
    try:
        print(f"evaluation folder: {folder.path}", flush=True)
        if done := folder.read_result():
            print("already finished; its result:")
            show(done, folder.path)
            return 0
        log_to([RunLog(folder.path / "log.txt")])
        failure, signals = score(request, folder)
        if signals:
            print(f"stopped; go on with --out {folder.path}", flush=True)
            return 128 + signals[0]
        if failure is not None:
            return told(failure, folder.path / "log.txt")
        show(conclude(request, folder), folder.path)
        return 0
    finally:
        folder.release()


def told(failure: BaseException, log: Path) -> int:
    """Prints what it failed with in a line, the traceback is in the log; gives the exit code."""
    own = isinstance(failure, DfdetError)
    message = str(failure) if own else f"{type(failure).__name__}: {failure}; give the same --out to go on"
    logger.error("%s", message, exc_info=failure)
    print(f"error: {message} (log: {log})", file=sys.stderr)
    return failure.exit_code if isinstance(failure, DfdetError) else 1


def score(request: Request, folder: Folder) -> tuple[BaseException | None, list[int]]:
    """Scores the slices that are not done yet; gives what it failed with and the signals received."""
    waiting = [part for part in request.slices if folder.kept(part) is None]
    if not waiting:
        return None, []
    resources = join_or_start()
    workers = count_workers(request.options, len(waiting), resources)
    cuda = uses_cuda(request.options, resources)
    logger.info("%d slices on %d %s workers", len(waiting), workers, "CUDA" if cuda else "CPU")
    stop = threading.Event()

    def work() -> BaseException | None:
        done = len(request.slices) - len(waiting)
        parts = scored(request.work, waiting, workers, cuda=cuda, stopping=stop.is_set)
        with show_progress("slices of 16 batches") as progress:
            for number, (part, scores) in enumerate(parts, start=done + 1):
                folder.keep(part, scores)
                progress(number, len(request.slices))
        return None

    return watch(work, lambda reason: stop.set(), "stopping when the slices under way are scored")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Ray does at exit would wait for a cluster that is gone
