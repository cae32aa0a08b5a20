"""A Ray head as ``ray start`` makes it, with ports and folders of its own, and jobs submitted to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PATIENCE_S = 400.0
"""How long a job, or a state of it, is waited for."""


class Head:
    """A cluster of one node, to which jobs are submitted from this checkout.

    Args:
        home: Home folder of the jobs; their relative paths lie in ``home/dfdet``.
        cpus: That Ray counts.
    """

    def __init__(self, home: Path, cpus: int = 8) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.outputs = home, home / "dfdet"
        # sockets lie in Ray's folder, and their paths must be short
        self._folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
        port, dashboard, client, agent = free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self._environment = environment() | {"HOME": str(home), "RAY_API_SERVER_ADDRESS": self.address}
        words = {
            "--port": port,
            "--node-ip-address": "127.0.0.1",
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": agent,
            "--ray-client-server-port": client,
            # from the whole of the system's ports: heads side by side would meet in Ray's own range
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--num-cpus": cpus,
            "--num-gpus": 0,
            "--temp-dir": self._folder,
        }
        given = [str(word) for pair in words.items() for word in pair]
        self._log = self._folder / "head.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [RAY, "start", "--head", "--block", *given],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self.client = self._connected()

    def _connected(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_AUTH_MODE"] = "disabled"
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                client = JobSubmissionClient(self.address)
                client.list_jobs()
                return client
            except (ConnectionError, RuntimeError):
                told = self._log.read_text(errors="replace")
                assert self._process.poll() is None and time.monotonic() < end, told
                time.sleep(0.5)

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What ``ray job ...`` gives, its two streams in one."""
        return subprocess.run(
            [RAY, "job", *words],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )

    def submit(self, name: str, *words: str, options: Sequence[str] = ()) -> Job:
        """Submits ``python WORDS`` from this checkout as README tells, and does not wait for it.

        Args:
            name: Of the submission.
            words: Program and arguments.
            options: Of ``ray job submit``.
        """
        done = self.ray("submit", *job_words(name, "--no-wait", *options), *words)
        assert done.returncode == 0, done.stdout
        return Job(self, name)

    def submit_quickly(self, name: str, *words: str) -> Job:
        """The same by Ray's client in this process: the command takes seconds to start."""
        entrypoint = shlex.join(["python", *words])
        self.client.submit_job(
            entrypoint=entrypoint, submission_id=name, runtime_env={"working_dir": str(ROOT)}
        )
        return Job(self, name)

    def processes(self, *names: str) -> list[psutil.Process]:
        """Processes of actors and tasks of these names, as ``RayTrainWorker``."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline()[:1])
                if title.startswith("ray::") and any(name in title for name in names):
                    found.append(process)
        return found

    def until_gone(self, *names: str) -> None:
        """Waits until no process of these names is left."""
        left = psutil.wait_procs(self.processes(*names), timeout=PATIENCE_S)[1]
        assert not left, left

    def end(self) -> list[psutil.Process]:
        """Ends the cluster; gives the processes that did not go with it, ended now.

        Those of the dashboard's and the environments' agents do not count: without a head they try for a
        minute to report to it. Nor do Ray Serve's own, which outlive applications: the head would wait 30 s
        for them.
        """
        for lasting in self.processes("ServeController", "ProxyActor"):
            lasting.kill()
        agents, processes = (
            self.processes("Agent"),
            psutil.Process(self._process.pid).children(recursive=True),
        )
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-3000:]
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
        left = psutil.wait_procs(processes, timeout=60)[1]
        for process in left:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        return list(left)


class Job:
    """A submitted job.

    Args:
        head: That it was submitted to.
        name: Of the submission.
    """

    def __init__(self, head: Head, name: str) -> None:
        self.head, self.name = head, name

    def details(self) -> Any:
        """Status, exit code and message (Ray's ``JobDetails``)."""
        return self.head.client.get_job_info(self.name)

    def logs(self) -> str:
        """All that its driver has printed so far."""
        return str(self.head.client.get_job_logs(self.name))

    def last_line(self) -> str:
        """The last line of its log."""
        return self.logs().strip().splitlines()[-1]

    def ended(self) -> Any:
        """Its details once it has ended, after a wait."""
        self._wait(lambda: self.details().status.is_terminal())
        return self.details()

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives once it is true, which must be before the job's end."""
        return self._wait(lambda: condition() or self._must_run())

    def _must_run(self) -> None:
        assert not self.details().status.is_terminal(), self.logs()

    def _wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)
        return found

    def stop(self) -> Any:
        """Does what ``ray job stop`` does, and waits as that does; gives the details."""
        self.head.client.stop_job(self.name)
        return self.ended()

    def kill(self) -> Any:
        """Kills the driver (SIGKILL), and waits until Ray tells of it; gives the details."""
        psutil.Process(int(self.details().driver_info.pid)).kill()
        return self.ended()


def job_words(name: str, *options: str) -> list[str]:
    """What stands between ``ray job submit`` and the program."""
    return ["--working-dir", ".", "--submission-id", name, *options, "--", "python"]


def environment() -> dict[str, str]:
    """This process's, without what it tells of a Ray, and with this interpreter as ``python``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    programs = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {
        "PATH": programs,
        "RAY_AUTH_MODE": "disabled",  # a token of the user's would be another cluster's
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
