"""The HTTP side: paths, limits, tokens, errors, headers. What is behind it is :class:`Service`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from dfdet import __version__
from dfdet.serving.answer import Answer, Asked, ErrorAnswer, Problem
from dfdet.serving.around import REQUEST_ID, Around
from dfdet.serving.body import Held, read_files
from dfdet.serving.page import POLICY, page
from dfdet.serving.refused import RefusedError, busy
from dfdet.serving.service import Service

PREDICT = "/v1/predict"
MAX_FRAMES = 128
"""Frames that a request may ask of a video."""
PARAMETERS = ("crops", "frames", "faces", "thumbnails")
_NAMES = {404: ("not_found", "there is nothing here"), 405: ("bad_method", "this path has another method")}
_FILE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "One file as it is, or several with file names in multipart/form-data.",
        "content": {
            "application/octet-stream": _FILE,
            "image/*": _FILE,
            "video/*": _FILE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": _FILE["schema"]}},
                }
            },
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "No image or video could be read."},
    401: {"model": ErrorAnswer, "description": "The bearer token is missing or wrong."},
    408: {"model": ErrorAnswer, "description": "The upload took too long."},
    413: {"model": ErrorAnswer, "description": "Too many bytes, pixels or seconds."},
    415: {"model": ErrorAnswer, "description": "Of no type that is taken."},
    422: {"model": ErrorAnswer, "description": "A parameter is unknown or out of range."},
    503: {"model": ErrorAnswer, "description": "Busy, or shutting down; see Retry-After."},
    504: {"model": ErrorAnswer, "description": "The prediction took too long."},
}


class Gate:
    """Who may come in: so many at a time, none when the server ends, and only with the token.

    Args:
        max_queue: Requests under way at most.
        token: None lets everybody in.
    """

    def __init__(self, max_queue: int, token: str | None = None) -> None:
        self.max_queue, self.under_way, self.draining = max_queue, 0, False
        self._digest = _digest(token) if token else None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def needs_token(self) -> bool:
        """Whether there is a token."""
        return self._digest is not None

    def check_token(self, request: Request) -> None:
        """Compares digests in constant time.

        Raises:
            RefusedError: 401.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._digest is None:
            return
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
            raise RefusedError(
                401, "unauthorized", "give the server's token as 'Authorization: Bearer TOKEN'"
            )

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """A request that is under way.

        Raises:
            RefusedError: 503.
        """
        if self.draining:
            raise busy("the server is shutting down")
        if self.under_way >= self.max_queue:
            raise busy(f"{self.max_queue} requests are under way already; come again")
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def drain(self) -> None:
        """Lets nobody in any more, and waits for those inside."""
        self.draining = True
        await self._idle.wait()


def create_app(service: Service, gate: Gate) -> ASGIApp:
    """The whole application."""
    app = FastAPI(
        title="dfdet",
        version=__version__,
        description="Deepfake detection: images and videos to scores and verdicts.",
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(app)
    _add_predict(app, service, gate)
    _add_state(app, service, gate)
    return Around(app, service.metrics, PREDICT, service.limits.max_bytes)


def _add_predict(app: FastAPI, service: Service, gate: Gate) -> None:
    limits, metrics = service.limits, service.metrics
    held = Held(limits.max_held_bytes)
    metrics.queue_limit.set(gate.max_queue)
    metrics.requests_under_way.set_function(lambda: gate.under_way)

    @app.post(PREDICT, responses=_REFUSALS, openapi_extra=_BODY, response_model=Answer)
    async def predict(
        request: Request,
        crops: Annotated[bool, Query(description="Files are face crops already.")] = False,
        frames: Annotated[
            int, Query(ge=1, le=MAX_FRAMES, description="Frames of a video, spread evenly.")
        ] = 32,
        faces: Annotated[
            Literal["one", "all"], Query(description="The recipe's person, or everyone: the highest counts.")
        ] = "one",
        thumbnails: Annotated[bool, Query(description="Add what the model saw, as small JPEGs.")] = False,
    ) -> Response:
        """Scores of images or videos, and whether they are called fake or real."""
        gate.check_token(request)
        if unknown := set(request.query_params) - set(PARAMETERS):
            told = f"{len(unknown)} unknown; there are {', '.join(PARAMETERS)}"
            raise RefusedError(422, "bad_parameter", f"query parameters: {told}")
        asked = Asked(frames, faces == "all", crops, thumbnails)
        async with gate.entered():
            with held.share() as share:
                with metrics.stage("upload"):
                    files = await read_files(request, limits, share)
                answer = await _unless_left(request, service.predict(files, asked, _request_id(request)))
        return Response(answer.model_dump_json(), media_type="application/json")


async def _unless_left(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of work, which ends when the client leaves: nobody waits for it any more."""
    task, left = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RefusedError(400, "disconnected", "the client left before the answer")
        return task.result()
    finally:
        left.cancel()
        if task.cancel():
            await asyncio.wait({task})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_state(app: FastAPI, service: Service, gate: Gate) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": ErrorAnswer}})
    async def readyz() -> dict[str, str]:
        """Predictions can be made: detector and model are loaded, and a crop was scored lately."""
        why = "the server is shutting down" if gate.draining else await service.ready()
        if why:
            raise RefusedError(503, "not_ready", why, retry_after_s=1)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        gate.check_token(request)
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(
            page(service, needs_token=gate.needs_token), headers={"Content-Security-Policy": POLICY}
        )


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return _told(request, error.status, error.code, error.message, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return _told(request, 422, "bad_parameter", f"{first['loc'][-1]}: {first['msg']}")

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = _NAMES.get(error.status_code, ("bad_request", "the request is malformed"))
        return _told(request, error.status_code, code, message, dict(error.headers or {}))

    async def internal(request: Request, error: Exception) -> Response:
        return _told(request, 500, "internal", "the server failed; its log has the request id")

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, internal)


def _told(
    request: Request, status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    told = ErrorAnswer(error=Problem(code=code, message=message), request_id=_request_id(request))
    return JSONResponse(json.loads(told.model_dump_json()), status, headers)


def _request_id(request: Request) -> str:
    found: str = request.scope.get(REQUEST_ID, "")
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
