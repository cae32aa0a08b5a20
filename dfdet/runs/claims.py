"""One owner of a run behind a URL at a time, over processes and hosts.

As :mod:`dfdet.runs.ownership`, by objects in place of locks: ``owner.json`` names the owner and is put
again as its heartbeat. A claim puts it on the condition that nobody else has meanwhile, which S3 and
Google Cloud Storage check. A storage that ignores the condition is found out by asking it for what must
fail; there the last of several claims wins, and the others see it after a pause.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from dfdet.errors import RunFolderError
from dfdet.runs.atomic import to_json
from dfdet.runs.objects import Stat, Store, tried
from dfdet.runs.ownership import HEARTBEAT_SECONDS, Owner, in_use, parse_owner
from dfdet.runs.patience import Warner, cause

logger = logging.getLogger(__name__)

OWNER = "owner.json"
CLAIM_TRIES = 5
SETTLE_S = 3.0
"""How long other claims may be under way on a storage without conditions (seconds)."""


class ObjectOwnership:
    """A held run; a thread keeps its heartbeat until :meth:`release`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.owner = Owner.here()
        self.lost = False
        """Whether another process has taken the run over."""
        self._beats = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-heartbeat", daemon=True)

    @classmethod
    def take(cls, store: Store) -> ObjectOwnership:
        """Takes a run.

        Raises:
            RunFolderError: A live process owns it (named with its host), or took it at the same moment.
            OSError: The storage is away, or not writable.
        """
        ownership = cls(store)
        for _ in range(CLAIM_TRIES):
            current, stat = _read(store)
            age_s = _now(store, ownership.owner.token) - stat.modified if stat else 0.0
            if current and current.is_live(age_s):
                raise in_use(store.url, current, age_s)
            if ownership._put(stat):
                if current:
                    logger.info(
                        "run folder %s: its owner %d on %s is gone", store.url, current.pid, current.host
                    )
                ownership._thread.start()
                return ownership
        raise RunFolderError(f"run folder {store.url}: other processes take it at this moment; try again")

    def release(self) -> None:
        """Gives the run back; again is harmless."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if tried(self._is_ours):
                self.store.remove(OWNER)
        except OSError as error:  # its process being gone frees it too
            logger.info("run folder %s: not there for its release (%s)", self.store.url, cause(error))

    def _put(self, before: Stat | None) -> bool:
        """Whether this claim has taken the place of ``before``."""
        condition: dict[str, Any] = {"over": before.version} if before else {"new": True}
        try:
            tried(lambda: self.store.put(OWNER, self._record(), **condition))
        except (FileExistsError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and not before:
                raise  # no such bucket
        else:
            self._settle(condition)
        return tried(self._is_ours)  # also where the answer to a first try was lost

    def _settle(self, condition: dict[str, Any]) -> None:
        """Waits for other claims, where the storage does not refuse what is not so any more."""
        try:
            self.store.put(OWNER, self._record(), **condition)
        except (FileExistsError, FileNotFoundError):
            return
        time.sleep(SETTLE_S)

    def _record(self) -> bytes:
        """The owner and a count: each beat is another content, so another version."""
        return to_json(self.owner.model_dump() | {"beats": self._beats}, indent=2).encode()

    def _is_ours(self) -> bool:
        current, _ = _read(self.store)
        return current is not None and current.token == self.owner.token

    def _beat(self) -> None:
        warner = Warner(logger)
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                self._beat_once()
            except FileExistsError:
                continue  # somebody has put another at this moment: the next look tells who
            except OSError as error:
                warner.warn("run folder %s: no heartbeat (%s); trying again", self.store.url, cause(error))
            if self.lost:
                logger.error("run folder %s: another process has taken it over", self.store.url)
                return

    def _beat_once(self) -> None:
        current, stat = _read(self.store)
        if current is None or stat is None or current.token != self.owner.token:
            self.lost = True
            return
        self._beats += 1
        self.store.put(OWNER, self._record(), over=stat.version)


def _read(store: Store) -> tuple[Owner | None, Stat | None]:
    """The recorded owner and its last heartbeat; the version is never a later one than the owner's."""
    stat = tried(lambda: store.stat(OWNER))
    text = tried(lambda: store.get(OWNER)) if stat else None
    return (None, None) if text is None else (parse_owner(text), stat)


def _now(store: Store, token: str) -> float:
    """The storage's time of day (seconds): what it says of an object put now."""
    probe = f"owner.{token}.probe"
    tried(lambda: store.put(probe, b""))
    stat = tried(lambda: store.stat(probe))
    store.remove(probe)
    return stat.modified if stat else time.time()
