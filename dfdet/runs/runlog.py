"""A run's log file, which never ends the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("dfdet", "ray_jobs", "shards")


class RunLog(logging.FileHandler):
    """Lines with their time; those that a full or absent storage refuses are not complained about."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        line = "%(asctime)s %(levelname).1s %(message)s"
        self.setFormatter(logging.Formatter(line, "%Y-%m-%d %H:%M:%S"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Nothing: whoever could not write tells so by itself, on the console too."""


def log_to(handlers: Sequence[logging.Handler]) -> None:
    """Sends this project's log to these handlers alone, a line an event."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False
