"""The run folder ``<storage>/<name>/``: who owns it, what it was made with, what it records.

The driver claims it; other processes open it with :func:`open_run` and own nothing. ``RunFolder`` is one
on a filesystem that the hosts share; :mod:`dfdet.runs.remotefolder` has the same behind a URL.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from dfdet.config import Config
from dfdet.data.remote import is_url
from dfdet.errors import RunFolderError
from dfdet.runs.atomic import to_json, write_bytes_atomic, write_bytes_once, write_json_atomic
from dfdet.runs.linelog import LineLog
from dfdet.runs.ownership import Ownership
from dfdet.runs.patience import patiently
from dfdet.runs.same_config import changed_fields, check_same_config, may_change

__all__ = [
    "ClaimStatus",
    "RunFolder",
    "changed_fields",
    "default_name",
    "may_change",
    "open_run",
    "read_metrics",
    "write_json_atomic",
]

ClaimStatus = Literal["new", "resume", "finished"]

DRIVER, CONTROLLER, FIRST_RANK = "driver", "controller", "rank-0"
"""Parts of processes in a run; the others are ``rank-<N>``."""
LOG, RESULT, STOP = "log.txt", "result.json", "stop"


def default_name(recipe: str) -> str:
    """``<recipe>-<UTC time>``, as ``gend-20260131-235959``."""
    return f"{recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


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


class Owned(Protocol):
    """A claim on a run folder."""

    lost: bool

    def release(self) -> None:
        """Gives it back."""


def open_run(place: str, cache_dir: str, role: str, group: str | None = None) -> RunFolder:
    """A run that another process has claimed, for this one's part in it; to be closed at its end.

    Args:
        place: As :attr:`RunFolder.place` gave it.
        cache_dir: For a working copy, where the place is a URL (``data.cache_dir``).
        role: :data:`DRIVER`, :data:`CONTROLLER`, or ``rank-<N>``.
        group: Of workers that this process belongs to, as ``ray_jobs.notices`` names it.

    Raises:
        RunFolderError: It cannot be read.
    """
    folder = _unopened(place, cache_dir, role, group)
    folder.open()
    return folder


def _unopened(place: str, cache_dir: str, role: str, group: str | None = None) -> RunFolder:
    if not is_url(place):
        return RunFolder(Path(place))
    from dfdet.runs.remotefolder import RemoteRunFolder  # needs packages that other runs do not

    return RemoteRunFolder(place, cache_dir, role, group)


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ownership: Owned | None = None
        self._metrics = LineLog(self.metrics_jsonl)

    @property
    def place(self) -> str:
        """Where the run lies: its path or URL."""
        return str(self.path)

    def named(self, path: Path) -> str:
        """A path in the folder, as messages and records name it."""
        return f"{self.place}/{path.relative_to(self.path)}"

    @property
    def config_json(self) -> Path:
        """The config as it stands (JSON)."""
        return self.path / "config.json"

    @property
    def result_json(self) -> Path:
        """Status, metrics, counts, timings and versions (JSON)."""
        return self.path / RESULT

    @property
    def metrics_jsonl(self) -> Path:
        """One JSON object a report, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def log_txt(self) -> Path:
        """The log."""
        return self.path / LOG

    @property
    def run_log(self) -> Path:
        """The log of the first rank."""
        return self.path / LOG

    @property
    def logs(self) -> list[Path]:
        """Logs that come here and tell of the whole run."""
        return list(dict.fromkeys([self.log_txt, self.run_log]))

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
        return self.path / STOP

    @staticmethod
    def claim(
        storage: Path | str, name: str, config: Config, role: str = DRIVER
    ) -> tuple[RunFolder, ClaimStatus]:
        """Creates or takes over ``<storage>/<name>`` for this process.

        A finished run is returned without being owned. One that has no checkpoint yet has nothing to
        resume: it is begun anew under any config. The stored config follows the new one.

        Args:
            storage: A folder or URL.
            name: Of the run.
            config: Of the run.
            role: The part of this process in it: :data:`FIRST_RANK` where it trains itself.

        Raises:
            RunFolderError: Storage that cannot be written, a live owner, or a stored config that
                differs where a resume may not.
        """
        place = str(storage) if is_url(str(storage)) else str(_local(Path(storage)))
        folder = _unopened(f"{place.rstrip('/')}/{name}", config.data.cache_dir, role)
        try:
            return folder, folder._claim(config)
        except OSError as error:
            folder.release()
            raise RunFolderError(
                f"run folder {folder.place}: cannot be written ({error.strerror or error});"
                " give a writable --run.storage"
            ) from error
        except BaseException:
            folder.release()
            raise

    def _claim(self, config: Config) -> ClaimStatus:
        self._begin()
        if self._is_finished():
            self._check_config(config)
            return "finished"
        self._ownership = self._own()
        status = self._prepare(config)
        if status != "finished":
            self._claimed()
        return status

    def release(self) -> None:
        """Gives the folder back to others; harmless where it is not owned."""
        if self._ownership:
            self._ownership.release()
            self._ownership = None

    def open(self) -> None:
        """Makes ready for this process's part in a run that another one has claimed."""

    def close(self) -> None:
        """Ends this process's part."""

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def _own(self) -> Owned:
        return Ownership.take(self.path)

    def _claimed(self) -> None:
        """What follows a claim."""

    def _is_finished(self) -> bool:
        return (self.read_result() or {}).get("status") == "finished"

    def _prepare(self, config: Config) -> ClaimStatus:
        if self._is_finished():  # by the run that had it a moment ago
            self._check_config(config)
            assert self._ownership is not None
            self._ownership.release()
            self._ownership = None
            return "finished"
        self.plots.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        self.withdraw(STOP)
        for litter in [*self.path.glob(".*.tmp"), *self.plots.glob(".*.tmp")]:
            litter.unlink()  # of a kill within a write
        status: ClaimStatus = "resume" if self._has_checkpoints() else "new"
        if status == "resume":
            self._check_config(config)
        else:
            self.withdraw(self.metrics_jsonl.name, RESULT)
        write_bytes_atomic(self.config_json, config.to_json().encode())
        self.publish(self.config_json.name)
        return status

    def _has_checkpoints(self) -> bool:
        return any(self.checkpoints.glob("step_*"))

    def _check_config(self, config: Config) -> None:
        check_same_config(self.config_json, config, self.place)

    # ---------------------------------------------------------------- what other processes see

    def bring(self, name: str) -> Path:
        """The path of a file that another process may have written; behind it is what is there now."""
        return self.path / name

    def publish(self, name: str) -> None:
        """Lets the others see a file that this process has written."""

    def publish_new(self, name: str, data: bytes) -> None:
        """Writes a file for all to see; of many processes that try, one succeeds.

        Raises:
            FileExistsError: Another one has.
        """
        write_bytes_once(self.path / name, data)

    def withdraw(self, *names: str) -> None:
        """Removes files for all; those that are not there are no error. A slash at the end means a folder."""
        for name in names:
            if name.endswith("/"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            else:
                (self.path / name).unlink(missing_ok=True)

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint that the first rank has written."""
        return self.checkpoints / name

    def publish_checkpoints(self) -> None:
        """Lets the others see the checkpoints as they are now; nothing to do in a folder that all see.

        Raises:
            OSError: The storage is away or full.
        """

    @contextmanager
    def following(self) -> Iterator[None]:
        """While the block lasts, the others' logs and metrics are kept up to date here."""
        yield

    # ---------------------------------------------------------------- records

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
        raise RunFolderError(f"run.storage={storage}: not a local path; give a URL as text, not as a path")
    return storage.expanduser().absolute()
