"""Ray nodes of ``benchmarks/nodes.py``: each in a network namespace, joined to the head's by a bridge."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

ROOT = Path(__file__).parents[1]
NETWORK = "198.18.0"
"""Of the range for benchmarks of network devices (RFC 2544)."""
HEAD = f"{NETWORK}.1"
ADDRESS = f"{HEAD}:6379"
PREFIX = "dfdet-nodes"
"""Of the names of namespaces; then come the process of the benchmark and a number."""
RAY = {
    "RAY_AUTH_MODE": "disabled",
    # a node that does not answer is dead after 25 s instead of a minute
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "5",
}
TIMEOUT_S = 900.0


def ip(*words: str) -> None:
    """Runs ``ip``, which must succeed."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for something."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not after {TIMEOUT_S:.0f} s: {what}")
        time.sleep(0.05)


class Host:
    """A namespace with an address, and the processes in it."""

    def __init__(self, number: int, owner: int) -> None:
        """Names it; :meth:`make` makes it.

        Args:
            number: Of the host, 0 the head.
            owner: Process of the benchmark.
        """
        self.space, self.link = f"{PREFIX}-{owner}-{number}", f"link{number}"
        self.address = f"{NETWORK}.{number + 1}"
        self.lost = False
        """Killed, or cut off for so long that Ray has given it up."""

    def make(self) -> None:
        """Makes the namespace."""
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "set", "lo", "up")

    def start(self, words: list[str], output: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a command in the namespace."""
        with output.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space, *words],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | RAY | environment,
                stdout=file,
                stderr=file,
            )

    def processes(self) -> list[psutil.Process]:
        """All that run in the namespace."""
        pids = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout
        found = []
        for pid in pids.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def runs(self, name: str) -> bool:
        """Whether one of them is called so, as Ray names actors and tasks."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    return True
        return False

    def kill(self) -> None:
        """Kills all of them at once: they are stopped first, so that none sees another go."""
        self.lost = True
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def remove(self) -> None:
        """Kills what still runs, and takes the namespace away, with its links."""
        until(lambda: self.kill() or not self.processes(), f"the end of {self.space}")
        ip("netns", "del", self.space)


class Cluster:
    """A head without CPUs and three nodes with one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Ray's sockets lie there, and their paths must be short
        self._temporary = tempfile.mkdtemp(prefix="nodes-")
        self.hosts: list[Host] = []
        self._cut: list[Host] = []

    def __enter__(self) -> Self:
        try:
            self.head = self._host()
            ip("-n", self.head.space, "link", "add", "bridge", "type", "bridge")
            ip("-n", self.head.space, "addr", "add", f"{HEAD}/24", "dev", "bridge")
            ip("-n", self.head.space, "link", "set", "bridge", "up")
            # without CPUs and memory, so that neither workers nor a sweep's trials come to lie here
            more = ["--head", "--port=6379", "--num-cpus=0", "--memory=1", "--include-dashboard=false"]
            self._ray(self.head, [*more, f"--temp-dir={self._temporary}"])
            self.fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for host in reversed(self.hosts):
            host.remove()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _host(self) -> Host:
        host = Host(len(self.hosts), os.getpid())
        host.make()
        self.hosts.append(host)
        return host

    def _ray(self, host: Host, more: list[str]) -> None:
        words = ["start", "--block", f"--node-ip-address={host.address}", "--disable-usage-stats"]
        memory = f"--object-store-memory={150 << 20}"
        log = self.folder / f"{host.link}.txt"
        program = host.start([ray_command(), *words, memory, *more], log)
        # one after another: they name their sockets, in the one folder, by what is there already
        until(lambda: "Ray runtime started" in log.read_text() or program.poll() is not None, "Ray's start")
        if program.poll() is not None:
            raise SystemExit(f"Ray did not start on {host.address}: {log.read_text()[-500:]}")

    def nodes(self) -> list[Host]:
        """Those that are not lost."""
        return [host for host in self.hosts[1:] if not host.lost]

    def fill(self, count: int = 3) -> None:
        """Starts nodes until there are so many."""
        self.unite()
        for host in self.hosts[1:]:
            if host.lost:
                host.kill()
        for _ in range(count - len(self.nodes())):
            host = self._host()
            ip(
                *("-n", self.head.space, "link", "add", host.link, "type", "veth"),
                *("peer", "name", "eth0", "netns", host.space),
            )
            ip("-n", self.head.space, "link", "set", host.link, "master", "bridge", "up")
            ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.space, "link", "set", "eth0", "up")
            self._ray(host, [f"--address={ADDRESS}", "--num-cpus=1"])

    def cut(self, host: Host) -> None:
        """Takes its link down: it reaches no other, and none is told so."""
        host.lost = True
        self._cut.append(host)
        ip("-n", self.head.space, "link", "set", host.link, "down")

    def unite(self) -> None:
        """Brings all links up again."""
        while self._cut:
            ip("-n", self.head.space, "link", "set", self._cut.pop().link, "up")


def remove_leftovers() -> None:
    """Takes away what a killed run of the benchmark has left."""
    spaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for owner, number in re.findall(rf"^{PREFIX}-(\d+)-(\d+)\b", spaces, re.M):
        if not psutil.pid_exists(int(owner)):
            Host(int(number), int(owner)).remove()


def ray_command() -> str:
    """Ray's program of this environment."""
    return str(Path(sys.executable).with_name("ray"))
