"""What driver, controller and workers tell each other through the run folder, which all of them see.

A file each under ``ray/``, written whole; storage that is away for a moment is no news.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from dfdet.runs.atomic import write_bytes_atomic
from dfdet.runs.runfolder import RunFolder

FOLDER = "ray"
"""Of the run folder: these files, and what Ray Train itself stores."""

ATTEMPT = "attempt"
"""Names the ``TorchTrainer`` run that the folder's workers belong to."""

CHECKPOINT_WANTED = "checkpoint-wanted"
"""Its time says when somebody wanted a fresh checkpoint."""


def notices(run: RunFolder) -> Path:
    """The folder of these files, made where it is missing."""
    folder = run.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class SupersededError(RuntimeError):
    """This worker belongs to an attempt that the driver, or the next driver, has given up."""


def begin_attempt(run: RunFolder) -> str:
    """Makes all workers of earlier attempts leave at their next log step; gives this attempt's name.

    Ray ends them too, but on a node that it has lost only after a while.
    """
    name = secrets.token_hex(8)
    write_bytes_atomic(notices(run) / ATTEMPT, name.encode())
    return name


def check_current(run: RunFolder, attempt: str) -> None:
    """Ends a worker that a later attempt has replaced, before it writes into the folder.

    Raises:
        SupersededError: Another attempt has begun.
    """
    try:
        current = (run.path / FOLDER / ATTEMPT).read_text(encoding="utf-8")
    except OSError:
        return
    if current != attempt:
        raise SupersededError(f"run folder {run.path}: belongs to a later attempt")


def want_checkpoint(run: RunFolder) -> None:
    """Asks the workers for a checkpoint at their next log step."""
    write_bytes_atomic(notices(run) / CHECKPOINT_WANTED, b"")


def checkpoint_wanted(run: RunFolder) -> int | None:
    """The last wish for a checkpoint (nanoseconds of the storage's clock); None once there is one."""
    wanted, last = _time_ns(run.path / FOLDER / CHECKPOINT_WANTED), _time_ns(run.checkpoints / "last.json")
    return wanted if wanted is not None and (last is None or last <= wanted) else None


def _time_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
