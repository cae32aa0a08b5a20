"""Failures of workers that a restart would only repeat, recorded in the run folder for the driver.

Bad input and damage are known to repeat. Any other failure is tried again, but not after the same
traceback at the same logged step: a bug, or a batch that does not fit in memory, would use up all
restarts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
from dataclasses import dataclass
from typing import Literal

from dfdet.config import Config
from dfdet.errors import DfdetError
from dfdet.runs.atomic import to_json, write_json_atomic
from dfdet.runs.runfolder import RunFolder, read_metrics
from ray_jobs.notices import FOLDER, SupersededError, notices

logger = logging.getLogger(__name__)

FAILURE = "failure.json"
"""Names a failure that a restart would only repeat; the driver shows it and clears it."""

CRASHES = "crashes.jsonl"
"""Failures that were tried again, a line each."""

PEER_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def forget(run: RunFolder) -> None:
    """Clears what an earlier start of the run has recorded: its cause may be gone."""
    for name in (FAILURE, CRASHES):
        (run.path / FOLDER / name).unlink(missing_ok=True)


def has_failed_for_good(run: RunFolder) -> bool:
    """Whether there is a failure that another attempt would repeat."""
    return (run.path / FOLDER / FAILURE).exists()


def read(run: RunFolder) -> tuple[str, int] | None:
    """Message and exit code of the failure that a restart would repeat, if there is one."""
    if not has_failed_for_good(run):
        return None
    record = json.loads((run.path / FOLDER / FAILURE).read_text(encoding="utf-8"))
    return record["message"], record["exit_code"]


@dataclass(frozen=True)
class Ending:
    """How a run ended, as its folder and its driver tell."""

    status: Literal["finished", "stopped", "failed"]
    message: str = ""
    """Why it stopped or failed, one line."""
    code: int = 0
    """Exit code of a failure."""


def ending(run: RunFolder, config: Config, failure: BaseException | None) -> Ending:
    """How a run ended.

    Args:
        run: Its folder.
        config: Of the run.
        failure: What Ray Train failed with, if it did.
    """
    if recorded := read(run):
        return Ending("failed", *recorded)
    result = run.read_result() or {}
    if result.get("status") == "finished":
        return Ending("finished")
    if failure is not None:
        from ray_jobs.trainer import explain

        own = isinstance(failure, DfdetError)
        return Ending("failed", str(failure) if own else explain(failure, config), 1)
    if result.get("status") == "stopped":
        return Ending("stopped", str(result.get("reason")))
    return Ending("failed", "the workers ended without a result", 1)


def keep(run: RunFolder, message: str, cause: BaseException | None) -> None:
    """Records a failure in the run's result and log."""
    logger.error("%s", message, exc_info=cause)
    run.write_result({"status": "failed", "message": message, "metrics": {}})


def record(run: RunFolder, rank: int, error: Exception) -> None:
    """Notes how a worker failed; to be called where the exception is handled."""
    if isinstance(error, SupersededError):
        return  # the folder is another attempt's
    try:
        if came_from_a_peer(error):
            _log(run, f"worker {rank} lost another one ({_name(error)})\n")
            return
        _log(run, "".join(traceback.format_exception(error)))
        if isinstance(error, DfdetError):
            _fail(run, rank, str(error), error.exit_code)
        else:
            _count(run, rank, error)
    except OSError as unwritten:  # the storage is away, which may be the failure itself
        logger.error("rank %d failed, which cannot be recorded: %s", rank, unwritten)


def came_from_a_peer(error: Exception) -> bool:
    """Whether a worker failed in a collective, as it does when another one is killed."""
    import torch.distributed as dist  # only here: the driver starts sooner without

    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in PEER_WORDS)


def _count(run: RunFolder, rank: int, error: Exception) -> None:
    """Gives the run up if this rank has failed alike before."""
    step = max((entry.get("step", 0) for entry in read_metrics(run.metrics_jsonl)), default=0)
    crash = {"rank": rank, "step": step, "place": _place(error)}
    if crash in read_metrics(run.path / FOLDER / CRASHES):
        message = (
            f"worker {rank} failed twice after step {step} in the same way ({_name(error)}); not tried a"
            " third time: its traceback is in the log"
        )
        _fail(run, rank, message, 1)
    else:
        with (notices(run) / CRASHES).open("a", encoding="utf-8") as file:
            file.write(to_json(crash) + "\n")


def _log(run: RunFolder, text: str) -> None:
    """Adds to the log of the run, which in this process may be the first rank's alone."""
    with run.log_txt.open("a", encoding="utf-8") as file:
        file.write(text)


def _fail(run: RunFolder, rank: int, message: str, code: int) -> None:
    write_json_atomic(notices(run) / FAILURE, {"message": message, "exit_code": code, "rank": rank})


def _name(error: Exception) -> str:
    """Type and first line, as ``ValueError: no such thing``."""
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _place(error: Exception) -> str:
    """Digest of where it was raised: the message may hold addresses and sizes, the frames do not."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return hashlib.sha256(repr((type(error).__name__, frames)).encode()).hexdigest()[:16]
