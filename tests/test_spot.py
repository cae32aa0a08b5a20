"""The watcher of spot machines, against a metadata service on loopback."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "deploy" / "spot.sh"
TOKEN = "a-token"


class Metadata(BaseHTTPRequestHandler):
    """Both clouds' services: nothing is announced until the third question."""

    asked: list[str]

    def answer(self, code, text=""):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        wanted = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self.answer(200 if wanted and self.path == "/latest/api/token" else 400, TOKEN)

    def do_GET(self):
        self.asked.append(self.path)
        announced = len(self.asked) >= 3
        if self.path == "/latest/meta-data/spot/instance-action":
            allowed = self.headers.get("X-aws-ec2-metadata-token") == TOKEN
            self.answer(401 if not allowed else 200 if announced else 404, '{"action": "terminate"}')
        elif self.path == "/computeMetadata/v1/instance/preempted":
            allowed = self.headers.get("Metadata-Flavor") == "Google"
            self.answer(200 if allowed else 403, "TRUE" if announced else "FALSE")
        else:
            self.answer(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    handler = type("Handler", (Metadata,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()


def run(folder, url, *args):
    """Runs the script with a ``ray`` that fails once, as while its head is away; gives what it was told."""
    ray = folder / "ray"
    ray.write_text('#!/bin/sh\necho "$@" >> "$TMPDIR/told"\ntest "$(wc -l < "$TMPDIR/told")" -gt 1\n')
    ray.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    env |= {"METADATA": url, "POLL_SECONDS": "0.1"}
    subprocess.run(["bash", str(SCRIPT), *args], env=env, check=True, timeout=120)
    told = folder / "told"
    return told.read_text().splitlines() if told.exists() else []


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "60"), ("gcp", "15")])
def test_the_node_is_drained_once_its_end_is_announced(cloud, seconds, service, tmp_path):
    url, asked = service
    told = run(tmp_path, url, cloud, seconds)
    assert len(asked) == 3
    assert told[0] == told[1]  # again, as the first try failed
    assert told[0].startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert told[0].endswith(f" --deadline-remaining-seconds {seconds}")


def test_one_of_it_is_enough_on_a_machine(service, tmp_path):
    url, asked = service
    with (tmp_path / "dfdet-spot.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run(tmp_path, url, "aws", "60") == []
    assert asked == []
