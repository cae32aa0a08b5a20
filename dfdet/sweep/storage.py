"""Where a study lives: a journal file in the sweep's folder, or a database by its URL."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna import Study, create_study
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy import create_engine, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dfdet.errors import ConfigError, RunFolderError, TrainingError
from dfdet.runs.linelog import end_of_lines, write_at
from dfdet.runs.patience import patiently
from dfdet.sweep.drivers import HOME
from dfdet.sweep.objective import Objective

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
DATABASES = ("sqlite", "postgresql")
BUSY_S = 60.0
"""How long SQLite waits for another process's write (seconds)."""


class Journal(BaseJournalBackend):
    """Optuna's journal file, one JSON object a line, that a kill or a full disk cannot damage.

    Optuna's own backend (5.0) leaves a line that a kill cut short in the file and appends the next one
    to it, after which the study cannot be read, and its lock outlives its process by 30 s. Here an
    append holds an flock on the file itself, which the kernel takes back, and first cuts off what has
    no line end: nobody was told that it had been written. The format is Optuna's; its dashboard reads it.

    Args:
        path: Of the file; made where it is not there.
        patience_s: How long a write to a full or unreachable storage is tried again (seconds).
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path, self.patience_s = path, patience_s
        self._read_lines, self._read_bytes = 0, 0  # lines read and the bytes that they fill
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The whole lines from this number on.

        Raises:
            RunFolderError: A line is damaged.
        """
        if log_number_from < self._read_lines:
            self._read_lines, self._read_bytes = 0, 0
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(self._read_bytes)
            data = file.read()
        for line in data.split(b"\n")[:-1]:  # what has no line end was cut short
            self._read_lines += 1
            self._read_bytes += len(line) + 1
            if self._read_lines > log_number_from:
                yield self._parse(line)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            log = json.loads(line)
            if isinstance(log, dict) and isinstance(log["op_code"], int):
                return log
            cause = "not a record"
        except (ValueError, KeyError) as error:
            cause = str(error)
        raise RunFolderError(
            f"study {self.path}: line {self._read_lines} is damaged ({cause}); restore the file from a"
            f" copy, or keep its first {self._read_lines - 1} lines and lose what came after"
        )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records, durably and all together or not at all.

        Raises:
            TrainingError: The storage was full or away for too long.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        patiently(lambda: self._append(data), f"study {self.path}", self.patience_s)

    def _append(self, data: bytes) -> None:
        with self.path.open("r+b", buffering=0) as file:  # a file that is gone must not begin anew
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = end_of_lines(file.fileno())
            if whole < os.fstat(file.fileno()).st_size:
                logger.info("study %s: a line that was cut short is left out", self.path)
                file.truncate(whole)
            try:
                write_at(file.fileno(), data, whole)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise


def open_storage(folder: Path, url: str | None, patience_s: float) -> BaseStorage:
    """The storage of a sweep's studies.

    Args:
        folder: Of the sweep; holds the journal where there is no URL.
        url: ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.
        patience_s: How long a journal that cannot be written is tried again (seconds).

    Raises:
        ConfigError: A URL that cannot be used, said without its password.
        RunFolderError: A journal that is damaged or gone.
    """
    if url is None:
        path = folder / JOURNAL
        if not path.exists() and (folder / HOME).exists():  # made after it
            raise RunFolderError(
                f"study {path}: is gone; restore it from a copy, or start a new sweep under another"
                " --run.name"
            )
        with explained(f"study {path}"):
            return JournalStorage(Journal(path, patience_s))
    with _opening(url) as connect_args:
        return get_storage(
            RDBStorage(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
        )


def check_database(url: str) -> None:
    """Refuses, before a sweep's folder is made, a database that cannot be used or reached.

    Raises:
        ConfigError: Said without its password.
    """
    with _opening(url) as connect_args:
        engine = create_engine(url, connect_args=connect_args)
        engine.connect().close()
        engine.dispose()


def with_absolute_path(url: str, absolute: Callable[[str], str]) -> str:
    """The URL of a database with the path of an SQLite file made absolute."""
    parsed = _check_url(url)
    if parsed.get_backend_name() != "sqlite":
        return url
    return parsed.set(database=absolute(str(parsed.database))).render_as_string()


@contextmanager
def _opening(url: str) -> Iterator[dict[str, Any]]:
    """Gives what a connection takes; turns what fails into one line."""
    parsed = _check_url(url)
    shown = parsed.render_as_string(hide_password=True)
    try:
        yield {"timeout": BUSY_S} if parsed.get_backend_name() == "sqlite" else {}
    except ImportError as error:
        raise ConfigError(
            f"--study {shown}: Python has no driver for it; pip install 'psycopg[binary]' and give"
            " postgresql+psycopg://..., or use sqlite:///FILE"
        ) from error
    except (SQLAlchemyError, RuntimeError) as error:  # the latter where another Optuna made its tables
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ConfigError(f"--study {shown}: cannot be opened ({cause}); see that it is there") from error


def _check_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # its text may hold a password
        raise ConfigError(
            "--study: no URL of a database; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in DATABASES:
        raise ConfigError(
            f"--study {shown}: {parsed.get_backend_name()} is not supported; give one of"
            f" {', '.join(DATABASES)}"
        )
    if parsed.password is not None or "password" in parsed.query:
        raise ConfigError(
            f"--study {parsed.set(query={}).render_as_string(hide_password=True)}: a password in a URL ends"
            " up in logs and process lists; leave it out and put it into ~/.pgpass (PostgreSQL reads it)"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"--study {shown}: a study in memory dies with its process; give sqlite:///FILE")
    return parsed


def load(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> Study:
    """The study of a name; made where it is not there.

    Raises:
        RunFolderError: Its records make no sense.
    """
    directions = [objective.direction for objective in objectives]
    with explained(f"study {name}"):
        study = create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        study.get_trials(deepcopy=False)
        return study


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what Optuna raises on records that make no sense into one line.

    Args:
        what: Names the study's storage; begins the message.

    Raises:
        RunFolderError: Whatever was wrong.
    """
    try:
        yield
    except (KeyError, AssertionError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{what}: its records make no sense ({type(error).__name__}: {error}); restore it from a"
            " copy, or start a new sweep under another --run.name"
        ) from error


@contextmanager
def told(name: str) -> Iterator[None]:
    """Turns a database's failure into one line.

    Args:
        name: Of the study.

    Raises:
        TrainingError: The database was away or full.
    """
    try:
        yield
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise TrainingError(
            f"study {name}: its database failed ({reason}); see that it is there and start the sweep again"
            " under its name: what was recorded is intact"
        ) from error
