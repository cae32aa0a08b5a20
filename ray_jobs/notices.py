"""What driver, controller and workers tell each other through the run folder, which all of them see.

A file each under ``ray/``, written whole; storage that is away for a moment is no news. In a run behind
a URL they come some seconds later.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from dfdet.runs.atomic import to_json, write_bytes_atomic
from dfdet.runs.mirror import SupersededError
from dfdet.runs.runfolder import RunFolder

__all__ = ["SupersededError"]

FOLDER = "ray"
"""Of the run folder: these files, and what Ray Train itself stores."""

ATTEMPT = "attempt"
"""Names the group of workers that the folder belongs to: that of its ``TorchTrainer`` run, a dot, its own."""

CHECKPOINT_WANTED = "checkpoint-wanted"
"""The step of the newest checkpoint when somebody wanted a later one."""

LAST = "checkpoints/last.json"
"""Of the run folder: the newest checkpoint."""


def notices(run: RunFolder) -> Path:
    """The folder of these files, made where it is missing."""
    folder = run.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_attempt(run: RunFolder) -> str:
    """Makes all workers of earlier attempts leave at their next log step; gives this attempt's name.

    Ray ends them too, but on a node that it has lost only after a while.
    """
    name = secrets.token_hex(8)
    _tell(run, ATTEMPT, name)
    return name


def begin_group(run: RunFolder, attempt: str) -> str:
    """The same within an attempt, for each group of workers that Ray Train starts; gives the group's name.

    Workers of a node that is cut off live on, and may come back to find others in their place.

    Raises:
        SupersededError: Another attempt has begun.
        OSError: The storage is away.
    """
    run.bring(f"{FOLDER}/{ATTEMPT}")
    check_current(run, attempt)
    name = f"{attempt}.{secrets.token_hex(4)}"
    _tell(run, ATTEMPT, name)
    return name


def check_current(run: RunFolder, name: str) -> None:
    """Ends what a later attempt or group has replaced, before it writes into the folder.

    Args:
        run: The run.
        name: Of a group; of an attempt, which any of its groups may follow.

    Raises:
        SupersededError: Another one has begun.
    """
    if is_superseded(run, name):
        raise SupersededError(f"run folder {run.place}: belongs to a later attempt")


def is_superseded(run: RunFolder, name: str) -> bool:
    """Whether another attempt or group than ``name`` has begun."""
    try:
        current = (run.path / FOLDER / ATTEMPT).read_text(encoding="utf-8")
    except OSError:
        return False
    return current != name and not current.startswith(f"{name}.")


def want_checkpoint(run: RunFolder) -> None:
    """Asks the workers for a checkpoint at their next log step."""
    newest = _step(run.bring(LAST))
    _tell(run, CHECKPOINT_WANTED, to_json({"step": -1 if newest is None else newest}))


def checkpoint_wanted(run: RunFolder) -> int | None:
    """The step that somebody wants a later checkpoint than; None once there is one."""
    wanted, newest = _step(run.path / FOLDER / CHECKPOINT_WANTED), _step(run.path / LAST)
    return wanted if wanted is not None and (newest is None or newest <= wanted) else None


def _tell(run: RunFolder, name: str, text: str) -> None:
    write_bytes_atomic(notices(run) / name, text.encode())
    run.publish(f"{FOLDER}/{name}")


def _step(path: Path) -> int | None:
    """What a record calls its step; None where there is no record."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
