"""What a resumed run may change of the config that it began with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from dfdet.config import Config, from_json, leaves
from dfdet.errors import ConfigError, RunFolderError

logger = logging.getLogger(__name__)

NEVER_COMPARED = {"run.storage", "run.name"}
MAY_CHANGE = {
    "run.workers",
    "run.device",
    "run.cpus_per_worker",
    "run.max_failures",
    "run.track",
    "run.track_project",
    "data.threads",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_gib",
    "data.retries",
}


def may_change(path: str) -> bool:
    """Whether a resumed run may have another value at this dotted path than it began with."""
    return path in MAY_CHANGE or (path.startswith("engine.") and path != "engine.precision")


def changed_fields(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted paths whose values differ, with both values; storage and name are not compared.

    Sets are compared by their paths as written; the fingerprint of the data is the trainer's to check.
    """
    before, after = leaves(old.model_dump(mode="json")), leaves(new.model_dump(mode="json"))
    return {
        path: (before[path], after[path])
        for path in before
        if path not in NEVER_COMPARED and before[path] != after[path]
    }


def check_same_config(saved: Path, config: Config, place: str) -> None:
    """Refuses a config that differs from a run's where a resume may not; tells of other differences.

    Args:
        saved: The run's ``config.json``.
        config: The new one.
        place: Of the run, for messages.

    Raises:
        RunFolderError: With the differences; or the saved one cannot be read.
    """
    try:
        changes = changed_fields(from_json(saved), config)
    except ConfigError as error:
        raise RunFolderError(
            f"run folder {place}: its config.json is missing or of another version, so it"
            f" cannot be resumed ({error}); give another --run.name"
        ) from error
    refused = {path: values for path, values in changes.items() if not may_change(path)}
    if refused:
        lines = [f"{path}: {json.dumps(old)} -> {json.dumps(new)}" for path, (old, new) in refused.items()]
        raise RunFolderError(
            f"run folder {place}: holds a run with another config ({'; '.join(lines)});"
            " give the old values, or another --run.name"
        )
    for path, (old, new) in changes.items():
        logger.info("%s: %s -> %s since the run began", path, json.dumps(old), json.dumps(new))
