"""What runs in a Ray Train worker: our loop with Ray's context, its log and its failures recorded."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from dfdet.config import from_dict
from dfdet.errors import DfdetError
from dfdet.runfolder import RunFolder, write_json_atomic

FAILURE = "failure.json"
"""Names a failure that a restart would only repeat; the driver shows it and clears it."""


class RayContext:
    """A Ray Train worker's surroundings."""

    def __init__(self, run: RunFolder) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.run = run
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._report = ray.train.report

    def report(self, metrics: dict[str, Any]) -> None:
        """Hands plain numbers to Ray Train, and so to Tune."""
        self._report(metrics)


def train_worker(args: dict[str, Any]) -> None:
    """``train_loop_per_worker``: ``args`` holds the config and the run folder's path."""
    from dfdet.train import train

    run = RunFolder(Path(args["folder"]))
    if (run.path / FAILURE).exists():
        return  # the attempt before failed for good: leave together, without a word
    context = RayContext(run)
    if context.rank == 0:
        log_to(run.log_txt)
    try:
        train(from_dict(args["config"]), context)
    except DfdetError as error:
        record = {"message": str(error), "exit_code": error.exit_code, "rank": context.rank}
        write_json_atomic(run.path / FAILURE, record)
        _log_traceback(run)
        raise
    except Exception:
        _log_traceback(run)
        raise


def log_to(path: Path) -> None:
    """Sends this project's log to a file, a line an event."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in ("dfdet", "ray_jobs", "shards"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _log_traceback(run: RunFolder) -> None:
    with run.log_txt.open("a", encoding="utf-8") as file:
        file.write(traceback.format_exc())
