"""Objects under a URL, for runs: each is put and read whole; what goes wrong is an ``OSError``.

Only storages that take writes (S3, Google Cloud Storage). Credentials and endpoints come from where
:mod:`dfdet.data.remote` says.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dfdet.data.remote import CREDENTIALS, check_url, open_filesystem, redact
from dfdet.errors import DfdetError, RunFolderError

logger = logging.getLogger(__name__)
T = TypeVar("T")

WRITABLE = ("s3", "gs")
TRIES, FIRST_PAUSE_S = 4, 0.5
"""Of a read, and of a write that nobody tries again."""
_CONFLICT = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_NAME = re.compile(r"[A-Za-z0-9._+-]+(?:/[A-Za-z0-9._+-]+)*")


@dataclass(frozen=True)
class Stat:
    """What the storage says of an object."""

    size: int
    """Its length (bytes)."""
    modified: float
    """When it was put, by the storage's clock (seconds since 1970)."""
    version: str
    """Another one for each content; empty where the storage has none to ask for."""


def check_writable(url: str) -> str:
    """The URL of a place that objects can be put to, without a slash at its end.

    Raises:
        RunFolderError: It is of another scheme, or holds credentials, a query or ``..``.
    """
    try:
        check_url(url)
    except DfdetError as error:
        raise RunFolderError(f"run.storage: {error}") from error
    scheme, _, rest = url.partition("://")
    if scheme not in WRITABLE or not rest.strip("/"):
        raise RunFolderError(
            f"run.storage={url}: cannot be written to; give a folder that all hosts see,"
            " s3://BUCKET/FOLDER or gs://BUCKET/FOLDER as --run.storage"
        )
    return url.rstrip("/")


class Store:
    """The objects under a URL, by their names relative to it; nothing is remembered between calls.

    Args:
        url: As :func:`check_writable` gives it.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, name: str) -> bytes | None:
        """An object's content; None where there is none.

        Raises:
            OSError: The storage is away or denies access.
        """
        with suppress(FileNotFoundError), self._translated():
            return bytes(self._filesystem.cat_file(self._path(name)))
        return None

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """A part of an object, from and up to an offset (bytes)."""
        with self._translated():
            return bytes(self._filesystem.cat_file(self._path(name), start=start, end=end))

    def get_file(self, name: str, target: Path) -> None:
        """Brings an object into a local file, which is not whole where this raises."""
        with self._translated():
            self._filesystem.get_file(self._path(name), str(target))

    def stat(self, name: str) -> Stat | None:
        """What the storage says of an object now; None where there is none."""
        with suppress(FileNotFoundError), self._translated():
            filesystem, path = self._filesystem, self._path(name)
            filesystem.invalidate_cache()
            info = filesystem.info(path)
            if info["type"] == "file":
                version = str(info.get("ETag") or "")
                return Stat(int(info["size"]), _seconds(info), version)
        return None

    def list(self, prefix: str) -> dict[str, int]:
        """Sizes of the objects under a prefix, by their names below it (bytes).

        A name that could mean a place outside of a folder is left out, with a warning.
        """
        filesystem, root = self._filesystem, self._path(prefix)
        with self._translated():
            filesystem.invalidate_cache()
            found = filesystem.find(root, detail=True)
        names = {path.removeprefix(f"{root}/"): int(info["size"]) for path, info in found.items()}
        return {name: size for name, size in names.items() if self._is_safe(name)}

    def put(self, name: str, data: bytes, *, new: bool = False, over: str | None = None) -> None:
        """Replaces an object, whole or not at all.

        Args:
            name: Of the object.
            data: Its content.
            new: Only where there is none.
            over: Only where this version of it is there; a storage that cannot tell replaces any.

        Raises:
            FileExistsError: There is one, or another version.
            FileNotFoundError: There is no such bucket, or no version at all.
            OSError: The storage is away, full or denies access.
        """
        options: dict[str, Any] = {"mode": "create"} if new else {}
        if over and self.url.startswith("s3://"):
            options["IfMatch"] = over
        with self._translated():
            self._filesystem.pipe_file(self._path(name), data, **options)

    def put_file(self, name: str, source: Path) -> None:
        """Replaces an object by a local file that does not change meanwhile."""
        with self._translated():
            self._filesystem.put_file(str(source), self._path(name))

    def remove(self, *names: str) -> None:
        """Removes objects; one that is not there is no error."""
        for name in names:
            with suppress(FileNotFoundError), self._translated():
                self._filesystem.rm_file(self._path(name))

    @property
    def _filesystem(self) -> Any:
        return open_filesystem(self.url)

    def _path(self, name: str) -> str:
        return f"{self.url.partition('://')[2]}/{name}"

    def _is_safe(self, name: str) -> bool:
        safe = _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))
        if not safe:
            logger.warning("%s: holds an object named %.200r, which is left alone", self.url, name)
        return safe

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DfdetError:
            raise
        except Exception as error:  # each storage has errors of its own
            raise _as_os_error(error, self.url) from error


def tried(work: Callable[[], T]) -> T:
    """What work gives, tried a few times; for what somebody waits for.

    Raises:
        OSError: The last try's.
    """
    for attempt in range(TRIES - 1):
        try:
            return work()
        except (FileExistsError, FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            logger.debug("try %d of %d: %s", attempt + 1, TRIES, error)
        time.sleep(FIRST_PAUSE_S * 2**attempt)
    return work()


def _seconds(info: dict[str, Any]) -> float:
    moment = info.get("LastModified") or info["mtime"]
    return float(moment.timestamp())


def _as_os_error(error: Exception, url: str) -> OSError:
    """The storage's error as the system would call it, in words without secrets."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    words = redact(getattr(error, "strerror", None) or str(error)).strip()[:200] or type(error).__name__
    if isinstance(error, FileExistsError) or code in _CONFLICT:
        return FileExistsError(errno.EEXIST, words)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, words)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        hint = f"access denied ({words}); give credentials through {CREDENTIALS[url.partition('://')[0]]}"
        return PermissionError(errno.EACCES, hint)
    return OSError(errno.EIO, words if isinstance(error, OSError) else f"{type(error).__name__}: {words}")
