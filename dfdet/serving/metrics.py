"""Counters of the server in Prometheus' text format. They hold no data of users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What the server counts; one of it in a process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "dfdet_requests", "Requests for predictions by HTTP status.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "dfdet_request_seconds",
            "Time from a request's head to its answer (s).",
            buckets=SECONDS,
            registry=registry,
        )
        self.files = Counter("dfdet_files", "Files by what was said of them.", ["said"], registry=registry)
        self.faces = Counter("dfdet_faces", "Faces scored.", registry=registry)
        self.batch = Histogram(
            "dfdet_batch_crops", "Crops of a forward pass.", buckets=SIZES, registry=registry
        )
        self.retries = Counter(
            "dfdet_retries", "Calls tried again because a replica died.", ["stage"], registry=registry
        )
        self.under_way = Gauge(
            "dfdet_under_way",
            "Requests that upload; files that wait for or are in a stage.",
            ["stage"],
            registry=registry,
        )
        self.requests_under_way = Gauge("dfdet_requests_under_way", "Requests admitted.", registry=registry)
        self.queue_limit = Gauge("dfdet_queue_limit", "Most requests under way.", registry=registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is in a stage."""
        gauge = self.under_way.labels(name)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def text(self) -> bytes:
        """All of it, for Prometheus."""
        return generate_latest(self._registry)
