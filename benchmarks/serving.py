"""The server under load on loopback, and under malformed requests.

    python benchmarks/serving.py BUNDLE --weights DETECTOR [--image FILE] [--rounds 3] [--seconds 5]
    python benchmarks/serving.py BUNDLE --weights DETECTOR --fuzz 10000

Load: closed loops of 1, 2, 4 ... clients, each asking again as soon as it is answered, against a server
that batches and one that does not (``--max_batch 1``), both running all the time; the sides alternate
within a round, the table has medians over the rounds. Without ``--image`` a ready crop of noise is sent.
Fuzz: files with bytes changed or cut, decompression bombs, wrong types, broken multipart bodies, huge and
broken heads; then the processes' memory and open files against those after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 2, 4, 8, 16, 32)
SIDES = {"batches": ("--max_batch", "32"), "one by one": ("--max_batch", "1")}
ROBUST = frozenset({200, 400, 404, 405, 413, 415, 422, 431})
"""Statuses that a malformed request may get."""


@dataclass(frozen=True)
class Point:
    """What was measured of one side at one number of clients."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


@contextmanager
def server(arguments: argparse.Namespace, *more: str) -> Iterator[tuple[str, int]]:
    """A server of its own; gives its address and process id."""
    words = ["--bundle", arguments.bundle, "--port", "0", "--max_queue", "256", *more]
    if arguments.weights:
        words += ["--weights", arguments.weights]
    if arguments.detector:
        words += ["--detector", arguments.detector]
    process = subprocess.Popen(
        [sys.executable, "ray_jobs/serve.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.startswith("serving at"))
        yield told.split()[-1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def load(url: str, data: bytes, query: str, clients: int, seconds: float) -> Point:
    """Closed loops for some time."""
    took: list[float] = []
    failed = 0
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as web:
        end = time.perf_counter() + seconds

        async def loop() -> None:
            nonlocal failed
            while (start := time.perf_counter()) < end:
                answer = await web.post(f"/v1/predict{query}", content=data)
                took.append(time.perf_counter() - start)
                failed += answer.status_code != 200

        begin = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(clients)))
        whole = time.perf_counter() - begin
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return Point(len(took) / whole, float(p50), float(p99), failed)


def measure(arguments: argparse.Namespace) -> None:
    """Prints the table of the load."""
    data = Path(arguments.image).read_bytes() if arguments.image else crop(1)
    query = "" if arguments.image else "?crops=true"
    found: dict[tuple[str, int], list[Point]] = {}
    with ExitStack() as stack:
        urls = {side: stack.enter_context(server(arguments, *more))[0] for side, more in SIDES.items()}
        for url in urls.values():
            asyncio.run(load(url, data, query, 4, 1.0))
        for number in range(arguments.rounds):
            for clients in CLIENTS:
                for side in list(urls)[:: 1 if number % 2 else -1]:
                    point = asyncio.run(load(urls[side], data, query, clients, arguments.seconds))
                    found.setdefault((side, clients), []).append(point)
    print_load(found)


def print_load(found: dict[tuple[str, int], list[Point]]) -> None:
    """Medians over the rounds, as Markdown."""
    print("| clients | side | answers/s | of one by one | p50 (ms) | p99 (ms) | failed |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for clients in CLIENTS:
        base = statistics.median(point.per_s for point in found["one by one", clients])
        for side in SIDES:
            points = found[side, clients]
            speed, p50, p99 = (
                statistics.median(getattr(point, name) for point in points)
                for name in ("per_s", "p50_ms", "p99_ms")
            )
            failed = sum(point.failed for point in points)
            numbers = f"{speed:.1f} | {speed / base:.2f} | {p50:.1f} | {p99:.1f} | {failed}"
            print(f"| {clients} | {side} | {numbers} |")


def fuzz(arguments: argparse.Namespace) -> int:
    """Prints what malformed requests get and leave; the exit code."""
    with server(arguments, "--max_bytes", str(4 << 20), "--timeout_s", "30") as (url, process):
        asyncio.run(attack(url, 300, seed=1))
        before = held(process)
        start = time.perf_counter()
        codes = asyncio.run(attack(url, arguments.fuzz, seed=2))
        took = time.perf_counter() - start
        time.sleep(2)  # threads and buffers that are let go
        after = held(process)
        alive = httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    told = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str))
    print(f"{sum(codes.values())} malformed requests in {took:.0f} s: {told}\n")
    print("| process | memory before (MiB) | after (MiB) | open files before | after |")
    print("|---|--:|--:|--:|--:|")
    for number, (name, memory, files) in before.items():
        if number in after:
            _, memory_after, files_after = after[number]
            print(f"| {name} | {memory:.0f} | {memory_after:.0f} | {files} | {files_after} |")
    died = sorted(name for number, (name, _, _) in before.items() if number not in after)
    wrong = {code: count for code, count in codes.items() if code not in ROBUST | {"closed"}}
    print(f"\nready: {alive}; processes that died: {died or 'none'}; other answers: {wrong or 'none'}")
    return 0 if alive and not died and not wrong else 1


def held(process: int) -> dict[int, tuple[str, float, int]]:
    """Name, memory of its own (MiB) and open files of the server and its replicas, by process id."""
    driver = psutil.Process(process)
    found = {driver.pid: ("server", driver.memory_full_info().uss / 2**20, driver.num_fds())}
    for child in driver.children(recursive=True):
        if kind := re.search(r"ServeReplica:\S*-(faces|model)", " ".join(child.cmdline())):
            found[child.pid] = (kind[1], child.memory_full_info().uss / 2**20, child.num_fds())
    return found


async def attack(url: str, count: int, seed: int) -> Counter[int | str]:
    """Statuses of so many malformed requests, eight at a time; ``closed``: the connection was."""
    rng = np.random.default_rng(seed)
    host = urlsplit(url)
    codes: Counter[int | str] = Counter()
    limit = asyncio.Semaphore(8)
    sources = [crop(1), picture("JPEG"), picture("WEBP"), video()]

    async def one(head: bytes, body: bytes) -> None:
        is_cut = b"\r\nContent-Length: %d\r\n" % len(body) not in head
        async with limit:
            data = head + body
            codes[await exchange(str(host.hostname), int(host.port or 0), data, is_cut=is_cut)] += 1

    for start in range(0, count, 500):
        part = range(start, min(start + 500, count))
        await asyncio.gather(*(one(*malformed(rng, sources, number)) for number in part))
    return codes


async def exchange(host: str, port: int, data: bytes, *, is_cut: bool) -> int | str:
    """Sends bytes on a connection of its own, perhaps less than they promise; the status of the answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        if is_cut:
            writer.write_eof()
        line = await asyncio.wait_for(reader.readline(), 60)
        found = re.match(rb"HTTP/1.1 (\d+)", line)
        return int(found[1]) if found else "closed"
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"
    finally:
        writer.close()


def malformed(rng: np.random.Generator, sources: Sequence[bytes], number: int) -> tuple[bytes, bytes]:
    """Head and body of one request."""
    kind = number % 10
    if kind < 5:
        return request(mutated(rng, sources[number % len(sources)]))
    if kind == 5:
        return request(bombs()[number // 10 % len(bombs())])
    if kind == 6:
        return request(
            rng.bytes(int(rng.integers(0, 3000))), "text/html" if number % 20 > 10 else "image/png"
        )
    if kind == 7:
        part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
        body = bytes(mutated(rng, part + sources[0] + b"\r\n--x--\r\n"))
        return request(body, "multipart/form-data; boundary=x")
    if kind == 8:
        return strange_head(rng, number // 10 % 5)
    return request(crop(1), query=f"?frames={rng.integers(-(10**9), 10**9)}&x={rng.integers(9)}")


def request(body: bytes, kind: str = "application/octet-stream", query: str = "") -> tuple[bytes, bytes]:
    """A whole request."""
    head = (
        f"POST /v1/predict{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def strange_head(rng: np.random.Generator, kind: int) -> tuple[bytes, bytes]:
    """Huge, broken or lying heads."""
    start = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return (
        (start + b"X-Long: " + b"a" * (1 << 20) + b"\r\n\r\n", b""),
        (start + b"".join(b"X-%d: y\r\n" % n for n in range(20000)) + b"\r\n", b""),
        (rng.bytes(400) + b"\r\n\r\n", b""),
        (start + b"Content-Length: 999999999999\r\n\r\n", bytes(1000)),
        (start + b"Transfer-Encoding: chunked\r\n\r\n", b"fffff\r\n" + bytes(1000)),
    )[kind]


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes changed, most of them in the head, or the end cut off."""
    found = bytearray(data)
    for place in rng.integers(0, min(len(found), 400 if rng.random() < 0.5 else len(found)), 20):
        found[place] = int(rng.integers(256))
    return bytes(found[: int(rng.integers(1, len(found)))] if rng.random() < 0.3 else found)


@cache
def bombs() -> list[bytes]:
    """Small files that promise or hold far more than they weigh."""
    return [
        png(50_000, 50_000),
        png(6000, 6000, rows=6000),
        png(64, 64, text=zlib.compress(bytes(200 << 20), 9)[: 1 << 20]),
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\x3f\0\xff\x3f\0" + bytes(40),
        b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\x03" + bytes(9) + b"\xff\xda" + bytes(100),
    ]


def png(width: int, height: int, rows: int = 1, text: bytes = b"") -> bytes:
    """A PNG of so many black rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(rows)) + packer.flush()
    extra = chunk(b"zTXt", b"a\0\0" + text) if text else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def crop(seed: int) -> bytes:
    """A ready crop of noise."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return saved(Image.fromarray(small).resize((224, 224)), "PNG")


def picture(form: str) -> bytes:
    """A photograph without faces."""
    return saved(Image.effect_noise((320, 240), 60).convert("RGB"), form)


def saved(image: Image.Image, form: str) -> bytes:
    """Bytes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def video() -> bytes:
    """A short MP4."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 20 * shade, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--weights", help="of the face detector")
    parser.add_argument("--detector", choices=("retinaface", "onnx"))
    parser.add_argument("--image", help="sent instead of a ready crop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a measurement")
    parser.add_argument("--fuzz", type=int, help="malformed requests instead of load")
    arguments = parser.parse_args()
    arguments.bundle = str(Path(arguments.bundle).absolute())
    if arguments.weights:
        arguments.weights = str(Path(arguments.weights).absolute())
    if arguments.fuzz:
        return fuzz(arguments)
    measure(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
