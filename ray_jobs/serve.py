"""Serves an exported bundle over HTTP: images and videos to scores and verdicts, with a page to try it.

    python ray_jobs/serve.py --bundle BUNDLE [--port 8000] [--replicas 2] [--token_file FILE]
    ray job submit --working-dir . -- python ray_jobs/serve.py --bundle BUNDLE --host 0.0.0.0

This process speaks HTTP and lets in what is within the limits; Ray Serve runs the replicas that find
faces and those that score them, restarts them, and adds more under load. SIGTERM and Ctrl-C end it when
the requests under way are answered.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from dfdet.cli import parse_flags
from dfdet.errors import DfdetError, InputError
from dfdet.serving.answer import ModelFacts
from dfdet.serving.metrics import Metrics
from dfdet.serving.service import Service
from dfdet.serving.web import Gate, create_app
from ray_jobs.cluster import join_or_start, joins_cluster
from ray_jobs.serve_options import TOKEN, Checked, Serve, check, device_of, plan
from shards.names import printable

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
MAX_HEAD_BYTES = 32 << 10
"""Request line and headers."""
KEEP_ALIVE_S = 15
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(argv: Sequence[str]) -> int:
    """Runs the command line; gives the exit code (2 bad input, 1 failure, 130/143 ended by a signal)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what clients send
    try:
        checked = check(parse_flags(Serve, argv, "serve.py", switches=True))
        with listening(checked.options) as sock:
            return run(checked, sock)
    except DfdetError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


@contextmanager
def listening(options: Serve) -> Iterator[socket.socket]:
    """The socket, taken before Ray starts.

    Raises:
        InputError: The address is not ours, or in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        raise InputError(
            f"--host {options.host} --port {options.port}: cannot be listened at ({error.strerror});"
            " give another --port, or stop what uses it"
        ) from error
    with sock:
        yield sock


def run(checked: Checked, sock: socket.socket) -> int:
    """Starts Ray and the replicas, serves until a signal, ends; gives the exit code."""
    import ray

    resources = join_or_start()
    name = f"dfdet-{sock.getsockname()[1]}-{secrets.token_hex(4)}"  # never that of a server before
    try:
        service, kind = _service(checked, name, resources)
        for line in _heading(checked, kind, sock):
            print(line, flush=True)
        return asyncio.run(_serve(service, checked, sock))
    finally:
        ray.shutdown()


def _service(checked: Checked, name: str, resources: dict[str, float]) -> tuple[Service, str]:
    from ray_jobs.serve_guard import guard
    from ray_jobs.serve_replicas import KINDS, Scoring, finder, scorer, start

    options, bundle, metrics = checked.options, checked.bundle, Metrics()
    device = device_of(options, resources)
    bundle.graph(options.precision, device)
    if joins_cluster():
        guard([f"{name}-{each}" for each in KINDS])
    faces, model, threads = plan(options, resources, device)
    print(
        f"starting {options.low_high[0]} replicas of {faces.cpus:g} CPU and as many of {model.cpus:g} CPU,"
        f" {model.gpus:g} GPU; they wait until there is room",
        flush=True,
    )
    scoring = Scoring(bundle, options.precision, device, threads, options.max_batch, options.batch_wait_ms)
    handles = start(name, checked.setting, scoring, options.low_high, (faces, model))
    service = Service(
        finder(handles[0], metrics),
        scorer(handles[1], metrics),
        model=ModelFacts(name=bundle.name, fingerprint=bundle.fingerprint, precision=options.precision),
        rule=checked.rule,
        aggregate=checked.aggregate,
        limits=options.limits,
        metrics=metrics,
    )
    return service, f"{options.precision} on {device}, {threads} threads"


def _heading(checked: Checked, kind: str, sock: socket.socket) -> list[str]:
    options, rule = checked.options, checked.rule
    host, port = sock.getsockname()[:2]
    threshold = "none" if rule.threshold is None else f"{rule.threshold:.4f}"
    lines = [
        f"model: {checked.bundle.name} ({checked.bundle.fingerprint[:12]}), {kind}",
        f"threshold: {threshold} ({rule.origin})",
        *checked.remarks,
    ]
    if options.host not in LOOPBACK and checked.token is None:
        lines.append(f"warning: --host {options.host} lets everybody in; give --token_file or {TOKEN}")
    return [*lines, f"serving at http://{f'[{host}]' if ':' in host else host}:{port}"]


async def _serve(service: Service, checked: Checked, sock: socket.socket) -> int:
    """Serves until a signal, then answers what is under way."""
    gate = Gate(checked.options.max_queue, checked.token)
    config = uvicorn.Config(
        create_app(service, gate),
        http="h11",  # it bounds the head of a request, httptools does not
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = _Server(config)
    received: list[int] = []
    drains: list[asyncio.Task[None]] = []

    async def drain() -> None:
        await gate.drain()
        server.should_exit = True

    def on(number: int) -> None:
        received.append(number)
        if len(received) > 1:  # once more: at once
            server.should_exit = server.force_exit = True
            return
        print("stopping when the requests under way are answered", flush=True)
        drains.append(asyncio.create_task(drain()))

    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray's own handlers
        asyncio.get_running_loop().add_signal_handler(number, on, number)
    await server.serve(sockets=[sock])
    return 128 + received[0] if received else 1


class _Server(uvicorn.Server):
    """Leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
