"""Which checkpoints of a run are kept, and which of them is called the last and the best."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from dfdet.checkpoints.checkpoint_format import (
    CheckpointState,
    load_state,
    named_checkpoint,
    read_json,
    step_folders,
    step_name,
)
from dfdet.errors import WeightsError
from dfdet.runs.atomic import write_json_atomic

logger = logging.getLogger(__name__)


def mark_last(folder: Path, checkpoint: Path) -> None:
    """Names a checkpoint of the folder as the newest, in ``last.json``."""
    write_json_atomic(folder / "last.json", {"checkpoint": checkpoint.name, "step": _step(checkpoint)})


def mark_best(folder: Path, checkpoint: Path, metric_name: str | None, value: float | None) -> None:
    """Names a checkpoint of the folder as the best, in ``best.json``."""
    record = {
        "checkpoint": checkpoint.name,
        "step": _step(checkpoint),
        "metric": metric_name,
        "value": value,
    }
    write_json_atomic(folder / "best.json", record)


def reconcile(folder: Path, state: CheckpointState) -> None:
    """Lets best.json and last.json follow the state that a run goes on from.

    A kill between the writes, or a damaged newest checkpoint, leaves them naming another.
    """
    if named_checkpoint(folder, "last") != step_name(state.step):
        mark_last(folder, folder / step_name(state.step))
    named = named_checkpoint(folder, "best")
    wanted = None if state.best_step is None else step_name(state.best_step)
    if named == wanted:
        return
    logger.warning("%s: best.json names %s, the run's state %s", folder, named, wanted)
    if wanted and (folder / wanted).is_dir():
        before = read_json(folder / "best.json").get("metric") if named else None
        name = load_state(folder / wanted).metric_name or before
        mark_best(folder, folder / wanted, name, state.best_metric)
    elif named:
        (folder / "best.json").unlink()


def prune(folder: Path, keep_last: int, keep_best: int = 1) -> None:
    """Removes all checkpoints but the newest, the best, and those that best.json and last.json name.

    Args:
        folder: The run's ``checkpoints`` folder.
        keep_last: Newest ones kept (checkpoints).
        keep_best: Best ones kept, by the metric in their ``state.json`` (checkpoints).
    """
    steps = step_folders(folder)
    kept = {path.name for path in [*steps[:keep_last], *_best(steps, keep_best)]} | {
        named_checkpoint(folder, "best"),
        named_checkpoint(folder, "last"),
    }
    for checkpoint in steps:
        if checkpoint.name not in kept:
            gone = checkpoint.with_name(f".gone-{checkpoint.name}")
            checkpoint.rename(gone)  # first: a kill within rmtree must not leave half a checkpoint
            shutil.rmtree(gone)


def _best(checkpoints: list[Path], count: int) -> list[Path]:
    """The best by their metric; of equal ones the earlier, as training chooses."""
    ranked = [(-metric, _step(path), path) for path in checkpoints if (metric := _metric(path)) is not None]
    return [path for _, _, path in sorted(ranked)[:count]]


def _metric(checkpoint: Path) -> float | None:
    try:
        return load_state(checkpoint).metric
    except WeightsError:
        return None  # damaged: not worth keeping as a best one


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
