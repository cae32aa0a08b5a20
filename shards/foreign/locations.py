"""Where a foreign tar lies: a local file, or a URL of a store that is only read, never run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from dfdet.errors import InputError

SCHEMES = ("http", "https", "s3", "gs", "hf")
"""Kinds of URL that are read; ``pipe:`` would run a program, and ``a::b`` chains hide others."""
BLOCK_BYTES = 8 << 20
"""Read at once from a store (bytes)."""
TRIES = 4
"""Of each read from a store, with pauses that double."""
FIRST_PAUSE_S = 0.5
SILENCE_S = 30.0
"""A connection that says nothing for this long is broken (seconds)."""

_SECRET = re.compile(r"(signature|sig|token|secret|password|credential|key|auth)[^=&]*=", re.IGNORECASE)


class UnreadableError(Exception):
    """A tar that cannot be opened or read to its end; the text is the reason."""


@dataclass(frozen=True)
class Location:
    """A tar: absolute path or URL."""

    url: str
    is_remote: bool

    @property
    def name(self) -> str:
        """Last part of the path or URL."""
        path = urlsplit(self.url).path if self.is_remote else self.url
        return path.rstrip("/").rpartition("/")[2]


def locate(text: str) -> Location:
    """Checks a path or URL as a user gave it; nothing is opened.

    Raises:
        InputError: A scheme that is not read, a chain, credentials in the URL, an odd character.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    shown = re.sub(r"//[^/]*@", "//...@", text.partition("?")[0])
    if not text or not text.isprintable():
        raise InputError(f"{shown!a} is no path and no URL of a tar: it has control characters")
    if "::" in text or (scheme and not text.startswith(scheme[0] + "//")):
        raise InputError(f"{shown!r} is not read: give a local path, or one plain URL ({', '.join(SCHEMES)})")
    if scheme is None:
        return Location(os.path.abspath(text), is_remote=False)  # noqa: PTH100 - without "..", unlike Path
    if scheme[1] not in SCHEMES:
        raise InputError(f"{shown!r} is not read: {scheme[1]} is none of {', '.join(SCHEMES)}")
    parts = urlsplit(text)
    if not parts.netloc or parts.path[-1:] in ("", "/") or ".." in unquote(parts.path).split("/"):
        raise InputError(f"{shown!r} names no file; give the URL of a tar")
    if "@" in parts.netloc or _SECRET.search(parts.query):
        raise InputError(
            f"{shown!r} holds credentials, which the manifest would keep: leave them out, and log in by "
            "the store's own means (environment, profile, token file)"
        )
    return Location(text, is_remote=True)


@contextmanager
def opened(location: Location) -> Iterator[IO[bytes]]:
    """The tar's bytes, to be read in order.

    Raises:
        UnreadableError: It is missing, no regular file, or (also while it is read) out of reach.
    """
    try:
        with _remote(location.url) if location.is_remote else _local(Path(location.url)) as file:
            yield file
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or _one_line(error)})") from error


def _local(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():
        raise UnreadableError("is no regular file")
    return path.open("rb")


@contextmanager
def _remote(url: str) -> Iterator[IO[bytes]]:
    import fsspec  # Local tars need none of it.

    try:
        filesystem = fsspec.filesystem(urlsplit(url).scheme, **_options(url))
        path = filesystem._strip_protocol(url)
        file = filesystem.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
    except Exception as error:
        raise UnreadableError(f"cannot be opened ({_one_line(error)})") from error
    with file:
        yield _Guarded(file)  # type: ignore[misc]


def _options(url: str) -> dict[str, Any]:
    if not url.startswith("http"):
        return {}
    import aiohttp

    # The default ends any transfer after five minutes; compression on the way would change offsets.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    headers = {"Accept-Encoding": "identity"}
    return {"headers": headers, "client_kwargs": {"timeout": timeout, "trust_env": True}}


class _Guarded:
    """A remote file, each of whose failures (stores have errors of their own) is unreadable."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        # What comes as one stream, from a server without ranges, cannot be asked for again.
        tries = TRIES if self._file.seekable() else 1
        for attempt in range(1, tries + 1):
            try:
                return self._file.read(size)
            except Exception as error:
                if attempt == tries:
                    raise UnreadableError(f"cannot be read ({_one_line(error)})") from error
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).partition("?")[0].split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
