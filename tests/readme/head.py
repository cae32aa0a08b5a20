"""A local Ray head on ports of its own, for the commands that need a cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.ray_jobs.jobs import free_ports
from tests.readme.shell import Shell, stop
from tests.readme.world import World

MARK = "head"
CPUS = 4
"""Logical ones, since jobs reserve them."""
ATTEMPTS = 3
"""Ray gives its node 30 s to come up, which is little on a busy machine."""


@contextmanager
def head(world: World, timeout_s: float) -> Iterator[dict[str, str]]:
    """Starts a head with its dashboard; gives the variables that lead commands to it.

    Raises:
        RuntimeError: It did not come up; with what it printed.
    """
    shell = Shell(world, {}, timeout_s)
    process, variables = _started(world, shell)
    try:
        yield variables
    finally:
        stop(process)


def _started(world: World, shell: Shell) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    for _ in range(ATTEMPTS):
        port, dashboard, client, agent = free_ports(4)
        command = (
            f"ray start --head --block --node-ip-address 127.0.0.1 --port {port} --dashboard-port {dashboard}"
            f" --ray-client-server-port {client} --dashboard-agent-listen-port {agent}"
            # from the whole of the system's ports: heads side by side would meet in Ray's own range
            f" --min-worker-port 0 --max-worker-port 0 --num-cpus {CPUS} --temp-dir {world.folder}/ray"
            " --disable-usage-stats"
        )
        print(command, flush=True)
        # the node's agent, which starts jobs, comes last
        process, ready = shell.serve(command, MARK, f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        if ready:
            # not RAY_ADDRESS, with which commands that are no jobs would join too
            return process, {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        stop(process)
    raise RuntimeError(f"the head did not start:\n{shell.output(MARK)}")
