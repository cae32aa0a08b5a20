"""What every request and answer gets: an id, security headers, a count, and patience with who still sends."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dfdet.serving.metrics import Metrics

logger = logging.getLogger(__name__)

DISCARD_S = 2.0
"""A client that still sends when it is refused is heard for so long: else it may never see the answer."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REQUEST_ID = "dfdet.request_id"
"""Key of the id in a request's scope; what a client sends as one is not used."""


class Around:
    """The application with that around it.

    Args:
        app: The application.
        metrics: Where to count.
        counted: Path whose requests are counted.
        max_discarded_bytes: Most that is read of a body that nobody wants.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, counted: str, max_discarded_bytes: int) -> None:
        self._app, self._metrics, self._counted = app, metrics, counted
        self._max_discarded = max_discarded_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, as ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope[REQUEST_ID] = uuid.uuid4().hex
        exchange = _Exchange(scope, receive, send, self._max_discarded)
        start = time.perf_counter()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - answered with 500; its text may hold what a client sent
            where = "".join(traceback.format_tb(error.__traceback__)[-4:])
            logger.error("request %s: %s at\n%s", scope[REQUEST_ID], type(error).__name__, where)
        if scope["path"] == self._counted and scope["method"] == "POST":
            self._metrics.requests.labels(str(exchange.status)).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)
        return None


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_discarded_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._left, self._is_read = max_discarded_bytes, False
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_read |= message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._scope[REQUEST_ID]
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.status >= 400 and not self._is_read and "expect" not in Headers(scope=self._scope):
                await self._discard()
        await self._send(message)

    async def _discard(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while self._left > 0 and not self._is_read:
                    self._left -= len((await self.receive()).get("body", b""))
