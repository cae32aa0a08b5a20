"""A run folder behind a URL: each process works on a copy of its own, and the copies meet at the URL.

The driver writes ``config.json``, the notices and the failures that end the run; the first rank the
log, metrics, checkpoints, pictures and the result; other processes a log each (``log-rank-3.txt``).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dfdet.errors import RunFolderError
from dfdet.runs.atomic import write_json_atomic
from dfdet.runs.checkpoint_mirror import CHECKPOINTS, CheckpointMirror
from dfdet.runs.claims import ObjectOwnership
from dfdet.runs.copies import WorkingCopy
from dfdet.runs.mirror import ATTEMPT, METRICS, SupersededError
from dfdet.runs.objects import Store, check_writable, tried
from dfdet.runs.patience import cause, patiently
from dfdet.runs.runfolder import CONTROLLER, DRIVER, FIRST_RANK, LOG, RESULT, STOP, RunFolder

logger = logging.getLogger(__name__)

NOTICE_PATIENCE_S = 60.0
"""How long a notice to other processes is tried (seconds)."""
OF_ALL = ("logs/", "stacks/")
OF_FIRST_RANK = (METRICS, "plots/", "tensorboard/", "wandb/")
CONTROLLER_LOG = f"log-{CONTROLLER}.txt"
WANTED, LAST = "ray/checkpoint-wanted", "checkpoints/last.json"


class RemoteRunFolder(RunFolder):
    """A :class:`.RunFolder` behind a URL.

    Args:
        url: Of the run: ``<storage>/<name>``.
        cache_dir: Where this process's working copy goes.
        role: ``driver``, ``controller`` or ``rank-<N>``.
        group: Of workers that this process belongs to; None where there are none.

    Raises:
        RunFolderError: The URL cannot be written to, or the working copy cannot be made.
    """

    def __init__(self, url: str, cache_dir: str, role: str, group: str | None = None) -> None:
        self.url = check_writable(url)
        self._role = role
        self._copy = WorkingCopy(cache_dir, self.url, role)
        super().__init__(self._copy.path)
        self._store = Store(self.url)
        first = role == FIRST_RANK
        self._mirror = CheckpointMirror(
            self._store,
            self.path,
            owned=(self.log_txt.name, *OF_ALL, *(OF_FIRST_RANK if first else ())),
            watched=_watched(role),
            followed=(LOG, CONTROLLER_LOG, METRICS) if role == DRIVER else (),
            group=group,
        )
        self._behind = False
        """Whether something that must not be lost is not at the URL."""
        self.checkpoints.mkdir()
        self.plots.mkdir()

    @property
    def place(self) -> str:
        """The run's URL."""
        return self.url

    @property
    def log_txt(self) -> Path:
        """The log of this process: ``log.txt`` is the first rank's."""
        return self.path / (LOG if self._role == FIRST_RANK else f"log-{self._role}.txt")

    @property
    def logs(self) -> list[Path]:
        """Logs that come to the driver and tell of the whole run."""
        return [*super().logs, self.path / CONTROLLER_LOG]

    # ---------------------------------------------------------------- opening and closing

    def open(self) -> None:
        """Brings what this process needs, and keeps it up to date from now on.

        Raises:
            RunFolderError: The storage cannot be read.
        """
        try:
            for name in (*self._own_logs(), *self._mirror.watched):
                tried(lambda name=name: self._mirror.bring(name))  # type: ignore[misc]
            if self._role == FIRST_RANK:
                self._bring_metrics()
                self._mirror.bring_checkpoints()
        except OSError as error:
            raise RunFolderError(f"run folder {self.url}: cannot be read ({cause(error)})") from error
        self._mirror.start()

    def _own_logs(self) -> tuple[str, ...]:
        """What an earlier process of this role has begun, and this one adds to."""
        return self.log_txt.name, f"logs/{self._role}.jsonl"

    def _bring_metrics(self) -> None:
        """With their time at the URL: it tells whether a worker was started again."""
        tried(lambda: self._mirror.bring(METRICS))
        if stat := tried(lambda: self._store.stat(METRICS)):
            os.utime(self.metrics_jsonl, (stat.modified, stat.modified))

    def close(self) -> None:
        """Puts the end of the log and removes the working copy; again is harmless."""
        self._mirror.close()
        if self._behind:
            self._copy.keep()
            logger.error("%s: not all of the run came there; it lies in %s", self.url, self.path)
        self._copy.discard()

    def _begin(self) -> None:
        for name in ("config.json", RESULT, LOG, CONTROLLER_LOG, METRICS, *self._own_logs()):
            tried(lambda name=name: self._mirror.bring(name))  # type: ignore[misc]

    def _own(self) -> ObjectOwnership:
        return ObjectOwnership.take(self._store)

    def _has_checkpoints(self) -> bool:
        return any(name.endswith("/checksums.json") for name in tried(lambda: self._store.list(CHECKPOINTS)))

    def _claimed(self) -> None:
        if self._role == FIRST_RANK:
            self._bring_metrics()
            self._mirror.bring_checkpoints()
        self._mirror.start()

    def release(self) -> None:
        """Gives the run back to others, and removes the working copy; harmless where it is not owned."""
        super().release()
        self.close()

    # ---------------------------------------------------------------- between the copies

    def bring(self, name: str) -> Path:
        """As :meth:`.RunFolder.bring`.

        Raises:
            RunFolderError: The storage is away, or denies access.
        """
        if self._mirror.owns(name):
            return self.path / name
        try:
            tried(lambda: self._mirror.bring(name))
        except OSError as error:
            raise RunFolderError(f"{self.url}/{name}: cannot be read ({cause(error)})") from error
        return self.path / name

    def publish(self, name: str) -> None:
        """As :meth:`.RunFolder.publish`; tried for a minute."""
        patiently(lambda: self._mirror.put(name), f"{self.url}/{name}", NOTICE_PATIENCE_S)

    def publish_new(self, name: str, data: bytes) -> None:
        """As :meth:`.RunFolder.publish_new`."""
        self._store.put(name, data, new=True)

    def withdraw(self, *names: str) -> None:
        """As :meth:`.RunFolder.withdraw`."""
        super().withdraw(*names)
        for name in names:
            tried(lambda name=name: self._remove(name))  # type: ignore[misc]

    def _remove(self, name: str) -> None:
        within = self._store.list(name[:-1]) if name.endswith("/") else [""]
        self._store.remove(*(name + rest for rest in within))

    def checkpoint(self, name: str) -> Path:
        """As :meth:`.RunFolder.checkpoint`, brought here if need be."""
        path = super().checkpoint(name)
        try:
            self._mirror.bring_checkpoint(name)
        except OSError as error:
            raise RunFolderError(f"{self.named(path)}: cannot be read ({cause(error)})") from error
        return path

    def publish_checkpoints(self) -> None:
        """As :meth:`.RunFolder.publish_checkpoints`."""
        self._putting(self._mirror.put_checkpoints)

    def write_result(self, result: dict[str, Any], patience_s: float = 0.0) -> None:
        """Replaces ``result.json``, after all else is at the URL; as :meth:`.RunFolder.write_result`."""
        write_json_atomic(self.result_json, result)
        what = f"{self.url} (what is not there lies in {self.path})"
        patiently(lambda: self._putting(self._put_all), what, patience_s)

    def _put_all(self) -> None:
        self._mirror.put_grown(at_once=True)
        if self._role == FIRST_RANK:
            self._mirror.put_checkpoints()
        self._mirror.put(RESULT)

    def _putting(self, put: Any) -> None:
        self._behind = True
        try:
            put()
            self._behind = False
        except SupersededError:
            self._behind = False  # others go on from what is there
            raise

    def read_result(self) -> dict[str, Any] | None:
        """The result; None where there is none or it is unreadable.

        Raises:
            RunFolderError: The storage is away, or denies access.
        """
        self.bring(RESULT)
        return super().read_result()

    def request_stop(self, reason: str) -> None:
        """Asks the run to stop; the notice goes to the URL from a thread, as a signal handler may ask."""
        super().request_stop(reason)
        threading.Thread(target=self._publish_stop, name="run-stop", daemon=True).start()

    def _publish_stop(self) -> None:
        try:
            self.publish(STOP)
        except SupersededError:
            pass
        except Exception as error:  # noqa: BLE001 - a thread: nobody else would tell
            logger.error("%s: could not be asked to stop (%s)", self.url, error)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keeps the logs and metrics here up to date, at last once more when the block ends."""
        yield
        with suppress(OSError):
            tried(self._mirror.look)


def _watched(role: str) -> tuple[str, ...]:
    """What a process looks at again and again: each name is a request every two seconds."""
    if role in (DRIVER, CONTROLLER):
        return (LAST,) if role == CONTROLLER else ()
    return (ATTEMPT, STOP, WANTED) if role == FIRST_RANK else (ATTEMPT,)
