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
from datetime import datetime
from typing import Literal

from dfdet.config import Config
from dfdet.errors import DfdetError
from dfdet.hang.verdict import Hang
from dfdet.runs.atomic import to_json, write_json_atomic
from dfdet.runs.runfolder import RunFolder, read_metrics
from dfdet.runs.runlog import log_json
from ray_jobs.notices import FOLDER, SupersededError, notices

logger = logging.getLogger(__name__)

FAILURE = "failure.json"
"""Names a failure that a restart would only repeat; the driver shows it and clears it."""

HANG = "hang.json"
"""Explains the hang that ended the last group of workers."""

CRASHES = "crashes"
"""Failures that were tried again, a line each: a file for each rank."""

PEER_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def forget(run: RunFolder) -> None:
    """Clears what an earlier start of the run has recorded: its cause may be gone."""
    run.withdraw(f"{FOLDER}/{FAILURE}", f"{FOLDER}/{HANG}", f"{FOLDER}/{CRASHES}/")


def has_failed_for_good(run: RunFolder) -> bool:
    """Whether there is a failure that another attempt would repeat."""
    return run.bring(f"{FOLDER}/{FAILURE}").exists()


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

        if line := last_hang(run):
            again = f"run.max_failures={config.run.max_failures}: the workers failed once more than that"
            return Ending("failed", f"{again}; the last time {line}", 1)
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
            log_json(f"worker {rank} lost another one", error)
            _log(run, f"worker {rank} lost another one ({_name(error)})\n")
            return
        log_json(f"worker {rank} failed: {_name(error)}", error)
        _log(run, "".join(traceback.format_exception(error)))
        if isinstance(error, DfdetError):
            _fail(run, rank, str(error), error.exit_code)
        else:
            _count(run, rank, error)
    except (OSError, DfdetError) as unwritten:  # the storage is away, which may be the failure itself
        logger.error("rank %d failed, which cannot be recorded: %s", rank, unwritten)


def record_hang(run: RunFolder, rank: int, hang: Hang, line: str) -> None:
    """Notes a hang, before the processes of all workers are ended.

    Args:
        run: The run.
        rank: That of this worker, which need not be to blame.
        hang: Who is.
        line: Explains it.
    """
    log_json(line)
    _log(run, f"{datetime.now():%Y-%m-%d %H:%M:%S} E {line}\n")
    write_json_atomic(notices(run) / HANG, {"message": line})
    run.publish(f"{FOLDER}/{HANG}")
    if _repeats(run, hang.ranks[0], hang.step, f"{hang.phase} {hang.place}"):
        _fail(run, rank, f"twice at the same step: {line}", 1)


def last_hang(run: RunFolder) -> str | None:
    """The line of the hang that ended the last group of workers, if that is how it ended."""
    try:
        text = run.bring(f"{FOLDER}/{HANG}").read_text(encoding="utf-8")
        return str(json.loads(text)["message"])
    except (OSError, ValueError, KeyError):
        return None


def forget_hang(run: RunFolder) -> None:
    """To be called where workers start again."""
    run.withdraw(f"{FOLDER}/{HANG}")


def came_from_a_peer(error: Exception) -> bool:
    """Whether a worker failed in a collective, as it does when another one is killed."""
    import torch.distributed as dist  # only here: the driver starts sooner without

    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in PEER_WORDS)


def _count(run: RunFolder, rank: int, error: Exception) -> None:
    """Gives the run up if this rank has failed alike before."""
    metrics = read_metrics(run.bring(run.metrics_jsonl.name))
    step = max((entry.get("step", 0) for entry in metrics), default=0)
    if _repeats(run, rank, step, _place(error)):
        message = (
            f"worker {rank} failed twice after step {step} in the same way ({_name(error)}); not tried a"
            " third time: its traceback is in the log"
        )
        _fail(run, rank, message, 1)


def _repeats(run: RunFolder, rank: int, step: int, place: str) -> bool:
    """Whether a rank has failed there before; from now on it has."""
    crash = {"rank": rank, "step": step, "place": place}
    name = f"{FOLDER}/{CRASHES}/rank-{rank}.jsonl"
    crashes = run.bring(name)
    if crash in read_metrics(crashes):
        return True
    crashes.parent.mkdir(parents=True, exist_ok=True)
    with crashes.open("a", encoding="utf-8") as file:
        file.write(to_json(crash) + "\n")
    run.publish(name)
    return False


def _log(run: RunFolder, text: str) -> None:
    """Adds to the log of the run, which in this process may be the first rank's alone."""
    with run.log_txt.open("a", encoding="utf-8") as file:
        file.write(text)


def _fail(run: RunFolder, rank: int, message: str, code: int) -> None:
    write_json_atomic(notices(run) / FAILURE, {"message": message, "exit_code": code, "rank": rank})
    run.publish(f"{FOLDER}/{FAILURE}")


def _name(error: Exception) -> str:
    """Type and first line, as ``ValueError: no such thing``."""
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _place(error: Exception) -> str:
    """Digest of where it was raised: the message may hold addresses and sizes, the frames do not."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return hashlib.sha256(repr((type(error).__name__, frames)).encode()).hexdigest()[:16]
