"""The whole application in this process: the real detector and graph, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx

from dfdet.data.decode import Pixels
from dfdet.prediction.verdict import rule_of
from dfdet.serving.answer import Asked, FoundFaces, ModelFacts
from dfdet.serving.bundle import open_bundle
from dfdet.serving.graph import Scored, open_graph
from dfdet.serving.limits import Limits
from dfdet.serving.metrics import Metrics
from dfdet.serving.service import Service
from dfdet.serving.web import Gate, create_app
from ray_jobs.own_recipe import Chosen, cutting
from ray_jobs.serve_faces import FaceFinder, Setting
from tests.dfdet.serving.bundles import Made


class Local:
    """An application and what is behind it.

    Args:
        made: The bundle and the detector.
        token: Of the gate.
        limits: Changes to them.
    """

    def __init__(self, made: Made, token: str | None = None, **limits: Any) -> None:
        self.limits = replace(Limits(), **limits)
        bundle = open_bundle(made.bundle)
        chosen = Chosen(weights=made.weights, detector="onnx", device="cpu")
        cut = cutting(bundle.crop, bundle.crop_scale, chosen)
        self.finder = FaceFinder(Setting(bundle, self.limits, cut.recipe, cut.detector))
        self.graph = open_graph(bundle, "float32", "cpu", 1)
        self.hold: asyncio.Event | None = None
        self.service = Service(
            self._find,
            self._score,
            model=ModelFacts(name=bundle.name, fingerprint=bundle.fingerprint, precision="float32"),
            rule=rule_of(bundle.threshold),
            aggregate="mean",
            limits=self.limits,
            metrics=Metrics(),
        )
        self.gate = Gate(self.limits.max_queue, token)
        self.app = create_app(self.service, self.gate)

    def client(self, **more: Any) -> httpx.AsyncClient:
        """A client of it."""
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://here", **more)

    async def _find(self, data: bytes, asked: Asked, limit_s: float) -> FoundFaces:
        if self.hold:
            await self.hold.wait()
        return await asyncio.to_thread(self.finder, data, asked, limit_s)

    async def _score(self, crops: Sequence[Pixels]) -> list[Scored]:
        return await asyncio.to_thread(self.graph, crops)


def post(local: Local, data: bytes, query: str = "", headers: dict[str, str] | None = None) -> httpx.Response:
    """One request."""

    async def ask() -> httpx.Response:
        async with local.client() as client:
            return await client.post(f"/v1/predict{query}", content=data, headers=headers)

    return asyncio.run(ask())


def get(local: Local, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """One request."""

    async def ask() -> httpx.Response:
        async with local.client() as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())
