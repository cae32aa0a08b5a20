"""Objects behind URLs: which URLs are taken, and how one object comes whole into a local file.

Credentials come only from the ecosystem's own places (environment, configuration files, ``.netrc``).
A URL that holds a user or password is refused. One with a query, as a signed URL has, is taken for
tars alone: their URLs stay in the manifest, while those of manifests are recorded with a run. No
message holds a query, nor the text of an exception that might.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

import fsspec
from fsspec.callbacks import Callback

from dfdet.errors import DfdetError, ShardSetError
from dfdet.hang.progress import PROGRESS

log = logging.getLogger(__name__)
T = TypeVar("T")

PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
"""Schemes that are taken, and the package that each needs besides fsspec."""
CREDENTIALS = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws; for a public bucket"
    " FSSPEC_S3_ANON=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "hf": "HF_TOKEN, or hf auth login",
    "http": "~/.netrc",
    "https": "~/.netrc",
}
"""Where each scheme's credentials belong."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Local errors that more room would cure."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pauses between tries: they double, and each is drawn from its upper half (seconds)."""
SILENCE_S = 30.0
"""A connection that says nothing for this long is taken for broken (seconds)."""
MAX_MANIFEST_BYTES = 2**30
"""Bound for what has no known size: 10^5 tars take about 30 MB (bytes)."""

_JITTER = random.SystemRandom()
"""Not the global generator: workers of one seed would all try again at the same moments."""

_SECRET = re.compile(r"://(?:[^/@\s]*@|[^/@:\s]*:(?!\d+(?:/|$))[^@\s]*@)")
_QUERY = re.compile(r"\?[^\s'\")\]]*")
_TRY_AGAIN_4XX = (408, 425, 429)


class StorageError(DfdetError):
    """Storage that cannot be reached or denies access, or a full disk: a later try may succeed."""


class ObjectError(ShardSetError):
    """An object that is not there, or not what its set says; no further try would help."""

    def __init__(self, reason: Literal["gone", "changed"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Interrupted(Exception):  # noqa: N818 - no error: nobody wants the object any more
    """A transfer that was given up."""


@dataclass(frozen=True)
class Remote:
    """An object of known content behind a URL; its text is the URL without a query."""

    url: str = field(repr=False)
    bytes: int
    sha256: str

    def __str__(self) -> str:
        return redact(self.url)

    @property
    def name(self) -> str:
        """Last part of its path."""
        return unquote(PurePosixPath(urlsplit(self.url).path).name)


class _Watch(Callback):
    """Ends a transfer that nobody wants any more, or one of more bytes than there should be."""

    def __init__(self, shown: str, expected: int | None, stop: Event | None) -> None:
        super().__init__()
        self._shown, self._expected, self._stop = shown, expected, stop

    def relative_update(self, inc: int = 1) -> None:
        """Looks on as bytes come."""
        self.value += inc
        if self._stop is not None and self._stop.is_set():
            raise Interrupted
        # not in set_size, which a page that says 404 calls as well
        if self._expected is not None and self.size not in (None, self._expected):
            raise _changed(self._shown, f"{self.size} bytes, but its set says {self._expected}")
        if self.value > (bound := MAX_MANIFEST_BYTES if self._expected is None else self._expected):
            raise _changed(self._shown, f"more than {bound} bytes")


def redact(text: str) -> str:
    """A URL, or a text with URLs, without users, passwords and queries."""
    return _QUERY.sub("?...", _SECRET.sub("://...@", text))


def is_url(path: str) -> bool:
    """Whether this is meant as a URL rather than as a local path."""
    return "://" in path or "::" in path or path.startswith("pipe:")


def refuse_secrets(url: str) -> str:
    """The URL, if it holds neither user nor password.

    Raises:
        ShardSetError: It does; the message does not repeat it.
    """
    if _SECRET.search(url):
        scheme = url.partition("://")[0]
        raise ShardSetError(
            f"{scheme}://...: holds a user or password, which would be recorded with the run; give the URL"
            f" without it and the credentials through {CREDENTIALS.get(scheme, 'the environment')}"
        )
    return url


def check_url(url: str, *, query: bool = False) -> str:
    """The URL, if it is one that may be read.

    Raises:
        ShardSetError: Its scheme is none of :data:`PACKAGES` (never ``pipe:``, never chained), it holds a
            user, password or ``..``, or a query where ``query`` does not allow one.
    """
    refuse_secrets(url)
    scheme, _, rest = url.partition("://")
    shown = redact(url)
    if "::" in url or scheme not in PACKAGES:
        raise ShardSetError(
            f"{shown}: not a URL that can be read; give a local path or a plain URL of"
            f" {', '.join(f'{name}://' for name in PACKAGES)}"
        )
    if "?" in rest and not query:
        raise ShardSetError(
            f"{shown}: has a query, which would be recorded with the run, and a signature there is not valid"
            " for the files beside it; give the plain URL, and the credentials through"
            f" {CREDENTIALS[scheme]}"
        )
    if ".." in unquote(rest.partition("?")[0]).split("/") or "\n" in url:
        raise ShardSetError(f"{shown}: '..' in a URL; give the URL without it")
    return url


def join(folder: str, name: str) -> str:
    """The URL of a file in a folder, given by its URL."""
    return f"{folder}/{quote(name) if folder.startswith('http') else name}"


def fetch(remote: Remote, target: Path, retries: int, stop: Event | None = None) -> None:
    """Downloads an object into a file and checks size and SHA-256.

    Raises:
        ObjectError: It is gone, or of another size or checksum.
        StorageError: Access is denied, or each try failed.
        OSError: The local disk is full.
        Interrupted: ``stop`` was set.
    """
    persist(remote.url, lambda: _transfer(remote.url, target, remote.bytes, stop), retries, stop)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != remote.sha256:
        raise _changed(str(remote), f"SHA-256 {found[:12]}..., but its set says {remote.sha256[:12]}...")


def fetch_unknown(url: str, target: Path, retries: int) -> None:
    """Downloads an object of unknown content, as a manifest; raises as :func:`fetch`."""
    persist(url, lambda: _transfer(url, target, None, None), retries)


def persist(url: str, transfer: Callable[[], T], retries: int, stop: Event | None = None) -> T:
    """What a transfer gives once a try succeeds; raises as :func:`fetch`."""
    for attempt in range(retries + 1):
        try:
            return transfer()
        except (DfdetError, Interrupted):
            raise
        except Exception as error:  # noqa: BLE001 - each storage has errors of its own
            cause = _judge(url, error)
        if attempt < retries:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * _JITTER.uniform(0.5, 1)
            PROGRESS.alive()
            log.warning("%s: %s; try %d of %d in %.1f s", redact(url), cause, attempt + 2, retries + 1, pause)
            _pause(pause, stop)
    raise StorageError(
        f"{redact(url)}: cannot be fetched, {retries + 1} times tried ({cause}); see that the storage can be"
        " reached and go on with the same --run.name, or raise --data.retries"
    )


def _pause(seconds: float, stop: Event | None) -> None:
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Interrupted


def _transfer(url: str, target: Path, size: int | None, stop: Event | None) -> None:
    """One try; what it raises is the storage's own."""
    filesystem = open_filesystem(url)
    watch = _Watch(redact(url), size, stop)
    filesystem.get_file(filesystem._strip_protocol(url), str(target), callback=watch)
    found = target.stat().st_size
    if size is not None and found != size:
        if watch.size == size:
            raise EOFError(f"{found} of {size} bytes came")
        raise _changed(redact(url), f"{found} bytes, but its set says {size}")


def _judge(url: str, error: Exception) -> str:
    """What a failed try is to be called; raises if no other one would help."""
    scheme, shown = urlsplit(url).scheme, redact(url)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise ObjectError(
            "gone",
            f"{shown}: there is no such object: it was removed, or the URL is wrong; put the set back,"
            " or name where it is",
        ) from None
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN_4XX
    if isinstance(error, PermissionError) or refused or "Credentials" in type(error).__name__:
        cause = f"HTTP {status}" if status else type(error).__name__
        raise StorageError(
            f"{shown}: access denied ({cause}); give credentials through {CREDENTIALS[scheme]}"
        ) from None
    return f"HTTP {status}" if status else f"{type(error).__name__}: {redact(str(error))}"[:200]


def _changed(shown: str, detail: str) -> ObjectError:
    return ObjectError(
        "changed",
        f"{shown}: {detail}: it was changed or damaged where it lies, maybe under the run; put the set's own"
        " file back, or make the set again",
    )


@functools.lru_cache(maxsize=16)
def _filesystem_of(scheme: str, process: int) -> Any:
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise ShardSetError(
            f"{scheme}://...: needs the package {PACKAGES[scheme]}; pip install {PACKAGES[scheme]}"
        )
    options: dict[str, Any] = {"skip_instance_cache": True}
    if PACKAGES[scheme] == "aiohttp":
        import aiohttp

        # the default timeout ends any transfer after 5 minutes
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        # transparent compression would make sizes differ
        options["headers"] = {"Accept-Encoding": "identity"}
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    if scheme == "s3":
        # one stream an object: parts of 50 MB, ten at a time, would be held in memory
        options["max_concurrency"] = 1
        options["config_kwargs"] = {
            "connect_timeout": SILENCE_S,
            "read_timeout": SILENCE_S,
            "retries": {"total_max_attempts": 1},
        }
    filesystem = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        filesystem.retries = 1  # tries are counted here, by data.retries
    return filesystem


def open_filesystem(url: str) -> Any:
    """The fsspec filesystem of a URL, made anew after a fork; ShardSetError without its package."""
    return _filesystem_of(urlsplit(url).scheme, os.getpid())
