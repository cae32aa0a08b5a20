"""The files of a request, read within limits: what a client promises of its body is not believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from dfdet.serving.limits import Limits
from dfdet.serving.refused import RefusedError, busy

_BINARY = ("", "application/octet-stream", "binary/octet-stream")


class Held:
    """Counts the bytes of bodies that lie in memory, of all requests together.

    Args:
        max_bytes: Most of them.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0

    def take(self, count: int) -> None:
        """Counts some.

        Raises:
            RefusedError: 503, there is no room.
        """
        if self.bytes + count > self.max_bytes:
            raise busy("other uploads fill the memory for them; come again")
        self.bytes += count

    @contextmanager
    def share(self) -> Iterator[Share]:
        """The part of one request, given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.bytes -= share.bytes


class Share:
    """What one request holds."""

    def __init__(self, held: Held) -> None:
        self._held, self.bytes = held, 0

    def take(self, count: int) -> None:
        """As :meth:`Held.take`."""
        self._held.take(count)
        self.bytes += count


async def read_files(request: Request, limits: Limits, share: Share) -> list[bytes]:
    """The files of a request: its body, or the parts of a ``multipart/form-data`` that have file names.

    Raises:
        RefusedError: 400, 408, 413, 415 or 503.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    _check_type(media_type)
    _check_promise(request, limits)
    stream = _bounded(request, limits, share)
    try:
        async with asyncio.timeout(limits.timeout_s):
            if media_type == "multipart/form-data":
                files = await _parts(request, stream, limits)
            else:
                files = [b"".join([chunk async for chunk in stream])]
    except TimeoutError as error:
        raise RefusedError(
            408, "slow_upload", f"the body did not come within {limits.timeout_s:g} s"
        ) from error
    except ClientDisconnect as error:
        raise RefusedError(400, "disconnected", "the client left during the upload") from error
    if not all(files):
        raise RefusedError(400, "empty", "a file is empty; send an image or a video")
    return files


def _check_type(media_type: str) -> None:
    if media_type in _BINARY or media_type == "multipart/form-data":
        return
    if not media_type.startswith(("image/", "video/")):
        raise RefusedError(
            415,
            "unknown_type",
            "this content type is not taken: send image/*, video/*, application/octet-stream or"
            " multipart/form-data",
        )


def _check_promise(request: Request, limits: Limits) -> None:
    promised = request.headers.get("content-length", "0")
    if not promised.isdecimal():
        raise RefusedError(400, "bad_length", "Content-Length is no number")
    if int(promised[:20]) > limits.max_bytes:
        raise too_large(limits)


def too_large(limits: Limits) -> RefusedError:
    """413 for a body."""
    return RefusedError(413, "too_large", f"the body is larger than {limits.max_bytes} bytes")


async def _bounded(request: Request, limits: Limits, share: Share) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        if share.bytes + len(chunk) > limits.max_bytes:
            raise too_large(limits)
        share.take(len(chunk))
        yield chunk


async def _parts(request: Request, stream: AsyncGenerator[bytes, None], limits: Limits) -> list[bytes]:
    parser = MultiPartParser(request.headers, stream, max_files=limits.max_files, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(
            400,
            "bad_multipart",
            f"the multipart body is broken, or has over {limits.max_files} files or 8 other fields",
        ) from error
    try:
        files = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    finally:
        await form.close()
    if not files:
        raise RefusedError(400, "empty", "the multipart body has no part with a file name")
    return files
