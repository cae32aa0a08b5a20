"""The server as a user starts it, on a port of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.dfdet.serving.bundles import Made

ROOT = Path(__file__).parents[2]


class Server:
    """A process of ``serve.py`` that is ready.

    Args:
        made: The bundle and the detector.
        log: File for what it prints.
        more: Arguments.
    """

    def __init__(self, made: Made, log: Path, *more: object) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        given = ["--bundle", made.bundle, "--weights", made.weights, "--detector", "onnx", "--port", 0, *more]
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "ray_jobs/serve.py", *map(str, given)],
                cwd=ROOT,
                env=environment | {"PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.url = self._ready()

    def _ready(self) -> str:
        end = time.monotonic() + 200
        while not (found := re.search(r"serving at (\S+)", self.told())):
            assert self.process.poll() is None and time.monotonic() < end, self.told()
            time.sleep(0.2)
        return found[1]

    def told(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace")

    def client(self) -> httpx.AsyncClient:
        """A client of it."""
        return httpx.AsyncClient(base_url=self.url, timeout=120)

    def replicas(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind: faces or model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if f"-{kind}:" in _title(each)]

    def metric(self, name: str) -> float:
        """A value of ``/metrics``; 0 where it was never counted."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = (line.rpartition(" ") for line in text.splitlines())
        return sum(float(value) for label, _, value in lines if label == name)

    def end(self) -> int:
        """Asks it to end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
