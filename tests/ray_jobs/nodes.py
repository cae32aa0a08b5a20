"""A Ray cluster of several nodes on this machine, each of which can be killed, or cut off and let back."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

SYSTEM = {
    # a node that does not answer is dead after 25 s instead of a minute
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 4000,
    "health_check_failure_threshold": 5,
}


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Waits for something true, and gives it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
    return found


class Node:
    """A node: its raylet and all processes under it."""

    def __init__(self, ray_node: Any) -> None:
        self.id: str = ray_node.node_id
        self.frozen: list[psutil.Process] = []
        self.killed = False
        self._raylet = psutil.Process(ray_node.all_processes["raylet"][0].process.pid)

    def processes(self) -> list[psutil.Process]:
        """The raylet, its agents and its workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._raylet, *self._raylet.children(recursive=True)]
        return []

    def running(self, name: str) -> list[psutil.Process]:
        """Its processes whose command line holds a name: that of an actor or a task, as Ray sets it."""
        return [process for process in self.processes() if name in command_line(process)]

    def freeze(self) -> None:
        """Cuts the node off: nothing of it answers or goes on, and nothing of it is told so."""
        while new := [each for each in self.processes() if each not in self.frozen]:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            self.frozen += new

    def thaw(self, name: str = "") -> list[psutil.Process]:
        """Lets its processes, or those of a name, go on as if nothing had happened; gives them."""
        back = [process for process in self.frozen if name in command_line(process)]
        for process in back:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self.frozen = [process for process in self.frozen if process not in back]
        return back

    def kill(self) -> None:
        """Kills all of it at once, as a machine dies."""
        self.killed = True
        self.freeze()
        for process in self.frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def command_line(process: psutil.Process) -> str:
    """Its words; empty where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Nodes:
    """A cluster: a head that runs no worker, and nodes of one CPU each."""

    def __init__(self, temporary: Path) -> None:
        """Starts the head.

        Args:
            temporary: Of Ray; short, since its sockets lie there.
        """
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each worker would compile all it imports
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(temporary)}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head | {"_system_config": SYSTEM})
        self.address: str = self._cluster.address
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.kill()
        self._cluster.shutdown()

    def alive(self) -> set[str]:
        """Ids of the nodes that Ray counts on."""
        table = self._cluster.global_state.node_table()
        return {each["NodeID"] for each in table if each["Alive"]}

    def fill(self, count: int) -> None:
        """Adds nodes until so many are alive: neither killed, nor given up by Ray."""
        alive = self.alive()
        missing = count - sum(node.id in alive and not node.killed for node in self.nodes)
        new = [Node(self._cluster.add_node(wait=False)) for _ in range(missing)]
        until(lambda: {node.id for node in new} <= self.alive())
        self.nodes += new

    def bury(self) -> None:
        """Kills what is left of nodes that Ray has given up."""
        alive = self.alive()
        for node in self.nodes:
            if node.id not in alive:
                node.kill()
        self.nodes = [node for node in self.nodes if node.id in alive]

    def with_worker(self, name: str) -> Node:
        """A node that runs a process of such a name; waits for one."""
        return until(lambda: next((node for node in self.nodes if node.running(name)), None))

    def wait_dead(self, node: Node) -> None:
        """Waits until Ray has given the node up."""
        until(lambda: node.id not in self.alive())
