"""Real servers of files, with faults on demand."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """Serves a folder over HTTP; counts requests by file name."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.fail: dict[str, int] = {}
        """Times that a file is still answered with 503."""
        self.cut: dict[str, int] = {}
        """Times that a file's connection is still closed in its middle."""
        self.status: dict[str, int] = {}
        """Files always answered with a status."""
        self.ranges = False
        """Whether a part of a file is given alone, as most storages do; the standard library's does not."""
        self.sent: Counter[str] = Counter()
        """Bytes of files' contents, by file name."""
        self.pause_s = 0.0
        """Before each answer."""
        self._lock = threading.Lock()
        handler = partial(_Handler, self, directory=str(folder))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def due(self, faults: dict[str, int], name: str) -> bool:
        with self._lock:
            faults[name] = faults.get(name, 0) - 1
            return faults[name] >= 0

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def count_bytes(self, name: str, size: int) -> None:
        with self._lock:
            self.sent[name] += size


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *args, **kwargs) -> None:
        self.faults = server
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.faults.count(name)
        time.sleep(self.faults.pause_s)
        if name in self.faults.status:
            return self.send_error(self.faults.status[name])
        if self.faults.due(self.faults.fail, name):
            return self.send_error(503)
        self.cut = self.faults.due(self.faults.cut, name)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.faults.ranges and part and Path(self.translate_path(self.path)).is_file():
            return self._send_part(int(part[1]), int(part[2]))
        return super().do_GET()

    def _send_part(self, first: int, last: int) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.copyfile(io.BytesIO(data[first : last + 1]), self.wfile)

    def copyfile(self, source, outputfile) -> None:
        data = source.read()
        data = data[: len(data) // 2] if self.cut else data
        self.faults.count_bytes(self.path.partition("?")[0].rpartition("/")[2], len(data))
        outputfile.write(data)

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


class ServerProcess:
    """Python's own file server as a process that can be killed and started again at its port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "http.server", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--directory", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: _answers(self.port))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition, seconds: float = 20.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
