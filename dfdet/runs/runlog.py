"""A run's log files, which never end the run: ``log.txt`` to read, ``logs/*.jsonl`` to search."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("dfdet", "ray_jobs", "shards")
FOLDER = "logs"
"""Of a run folder: JSON lines, a file for each process that writes."""
SWEEP = "sweep.json"
"""In the folder above a run's, where that is a sweep's."""


class QuietLog(logging.FileHandler):
    """A file of lines; those that a full or absent storage refuses are not complained about."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Nothing: whoever could not write tells so by itself, on the console too."""


class RunLog(QuietLog):
    """Lines with their time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        line = "%(asctime)s %(levelname).1s %(message)s"
        self.setFormatter(logging.Formatter(line, "%Y-%m-%d %H:%M:%S"))


class JsonLines(logging.Formatter):
    """Each record a JSON object on a line: time, level, run, trial, rank, host, pid, logger, message.

    Args:
        fields: Equal in all records of this process.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = {**fields, "host": socket.gethostname(), "pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception is its field ``traceback``."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **self._fields,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1]:
            entry["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(entry, ensure_ascii=False, default=str)


class JsonLog(QuietLog):
    """``logs/<writer>.jsonl`` of a run folder, made with its first record: one process writes a file.

    Args:
        run: The run's folder.
        writer: Names the process among those of the run: ``rank-0``, ``driver``.
        rank: Of a training process.
    """

    def __init__(self, run: Path, writer: str, rank: int | None = None) -> None:
        super().__init__(run / FOLDER / f"{writer}.jsonl", encoding="utf-8", delay=True)
        self.setFormatter(JsonLines(fields(run, rank)))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record; the run folder itself, which a storage that is away lacks, is never made."""
        try:
            Path(self.baseFilename).parent.mkdir(exist_ok=True)
            super().emit(record)
        except OSError:
            self.handleError(record)


class JsonConsole(logging.StreamHandler[Any]):
    """The same lines on stderr, which Ray keeps for each process and log collectors read."""

    def __init__(self, run: Path, rank: int | None = None) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines(fields(run, rank)))


def fields(run: Path, rank: int | None) -> dict[str, Any]:
    """Run, trial and rank: of a sweep's run the sweep and the run's own name, else the name and null."""
    of_sweep = (run.parent / SWEEP).exists()
    name, trial = (run.parent.name, run.name) if of_sweep else (run.name, None)
    return {"run": name, "trial": trial, "rank": rank}


def log_to(handlers: Sequence[logging.Handler]) -> None:
    """Sends this project's log to these handlers alone, a line an event."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def log_json(message: str, error: BaseException | None = None) -> None:
    """An error for the JSON lines alone: the other logs have it, or shall not."""
    logger = logging.getLogger(PACKAGES[0])
    trace = (type(error), error, error.__traceback__) if error else None
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, (), trace)
    for handler in logger.handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.handle(record)
