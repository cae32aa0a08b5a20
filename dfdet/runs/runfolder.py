"""The run folder ``<storage>/<name>/``: who owns it, what it was made with, what it records.

The driver claims it; a worker opens it by its path, ``RunFolder(path)``, and owns nothing. Local
filesystems only (one that the hosts share will do).
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dfdet.config import Config, from_json, leaves
from dfdet.errors import ConfigError, RunFolderError
from dfdet.runs.atomic import to_json, write_bytes_atomic, write_json_atomic
from dfdet.runs.linelog import LineLog
from dfdet.runs.ownership import Ownership
from dfdet.runs.patience import patiently

__all__ = [
    "ClaimStatus",
    "RunFolder",
    "changed_fields",
    "default_name",
    "may_change",
    "read_metrics",
    "write_json_atomic",
]

logger = logging.getLogger(__name__)

ClaimStatus = Literal["new", "resume", "finished"]

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


def default_name(recipe: str) -> str:
    """``<recipe>-<UTC time>``, as ``gend-20260131-235959``."""
    return f"{recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl``; a line that a kill cut short is left out, a missing file is empty."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ownership: Ownership | None = None
        self._metrics = LineLog(self.metrics_jsonl)

    @property
    def config_json(self) -> Path:
        """The config as it stands (JSON)."""
        return self.path / "config.json"

    @property
    def result_json(self) -> Path:
        """Status, metrics, counts, timings and versions (JSON)."""
        return self.path / "result.json"

    @property
    def metrics_jsonl(self) -> Path:
        """One JSON object a report, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def log_txt(self) -> Path:
        """The log."""
        return self.path / "log.txt"

    @property
    def plots(self) -> Path:
        """Folder of pictures."""
        return self.path / "plots"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``step_<NNNNNNNN>`` folders, ``best.json`` and ``last.json``."""
        return self.path / "checkpoints"

    @property
    def _stop(self) -> Path:
        return self.path / "stop"

    @staticmethod
    def claim(storage: Path, name: str, config: Config) -> tuple[RunFolder, ClaimStatus]:
        """Creates or takes over ``<storage>/<name>`` for this process.

        A finished run is returned without being owned. One that has no checkpoint yet has nothing to
        resume: it is begun anew under any config. The stored config follows the new one.

        Raises:
            RunFolderError: Storage that cannot be written, a live owner, or a stored config that
                differs where a resume may not.
        """
        folder = RunFolder(_local(storage) / name)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if folder._is_finished():
                folder._check_config(config)
                return folder, "finished"
            folder._ownership = Ownership.take(folder.path)
            try:
                return folder, folder._prepare(config)
            except BaseException:
                folder.release()
                raise
        except OSError as error:
            raise RunFolderError(
                f"run folder {folder.path}: cannot be written ({error.strerror or error});"
                " give a writable --run.storage"
            ) from error

    def release(self) -> None:
        """Gives the folder back to others; harmless where it is not owned."""
        if self._ownership:
            self._ownership.release()
            self._ownership = None

    def _is_finished(self) -> bool:
        return (self.read_result() or {}).get("status") == "finished"

    def _prepare(self, config: Config) -> ClaimStatus:
        if self._is_finished():  # by the run that had it a moment ago
            self._check_config(config)
            self.release()
            return "finished"
        self.plots.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        self._stop.unlink(missing_ok=True)
        for litter in [*self.path.glob(".*.tmp"), *self.plots.glob(".*.tmp")]:
            litter.unlink()  # of a kill within a write
        status: ClaimStatus = "resume" if any(self.checkpoints.glob("step_*")) else "new"
        if status == "resume":
            self._check_config(config)
        else:
            self.metrics_jsonl.unlink(missing_ok=True)
            self.result_json.unlink(missing_ok=True)
        write_bytes_atomic(self.config_json, config.to_json().encode())
        return status

    def _check_config(self, config: Config) -> None:
        try:
            changes = changed_fields(from_json(self.config_json), config)
        except ConfigError as error:
            raise RunFolderError(
                f"run folder {self.path}: its config.json is missing or of another version, so it"
                f" cannot be resumed ({error}); give another --run.name"
            ) from error
        refused = {path: values for path, values in changes.items() if not may_change(path)}
        if refused:
            lines = [
                f"{path}: {json.dumps(old)} -> {json.dumps(new)}" for path, (old, new) in refused.items()
            ]
            raise RunFolderError(
                f"run folder {self.path}: holds a run with another config ({'; '.join(lines)});"
                " give the old values, or another --run.name"
            )
        for path, (old, new) in changes.items():
            logger.info("%s: %s -> %s since the run began", path, json.dumps(old), json.dumps(new))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to ``metrics.jsonl``; NaN and infinities become null.

        Lines that the storage refuses are kept, and written before the next one.
        """
        self._metrics.append(to_json(record))

    def flush_metrics(self, patience_s: float = 0.0) -> None:
        """Writes the lines that the storage has refused.

        Raises:
            TrainingError: It refuses them for longer than ``patience_s`` (seconds).
        """
        patiently(self._metrics.flush, f"metrics {self.metrics_jsonl}", patience_s)

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after a step, and the final one: a resume from that step writes them again."""
        self._metrics = LineLog(self.metrics_jsonl)
        if not self.metrics_jsonl.exists():
            return
        kept = [
            record
            for record in read_metrics(self.metrics_jsonl)
            if record.get("step", 0) <= step and not record.get("final")
        ]
        write_bytes_atomic(self.metrics_jsonl, "".join(to_json(record) + "\n" for record in kept).encode())

    def write_result(self, result: dict[str, Any], patience_s: float = 0.0) -> None:
        """Replaces ``result.json``; ``status: finished`` makes a later claim return its result.

        Raises:
            TrainingError: The storage refuses it for longer than ``patience_s`` (seconds).
        """
        patiently(lambda: write_json_atomic(self.result_json, result), str(self.result_json), patience_s)

    def read_result(self) -> dict[str, Any] | None:
        """The result; None where there is none or it is unreadable."""
        try:
            result = json.loads(self.result_json.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    def request_stop(self, reason: str) -> None:
        """Asks the run, from any process that sees the folder, to checkpoint and stop."""
        write_bytes_atomic(self._stop, reason.encode())

    def stop_requested(self) -> str | None:
        """Why the run must stop; None to go on, as while the storage is away. A claim clears it."""
        if self._ownership and self._ownership.lost:
            return "another process has taken the run folder over"
        try:
            return self._stop.read_text(encoding="utf-8") or "no reason given"
        except OSError:
            return None


def _local(storage: Path) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(storage)):
        raise RunFolderError(
            f"run.storage={storage}: not a local path; give a folder that all hosts see as --run.storage"
        )
    return storage.expanduser().absolute()
