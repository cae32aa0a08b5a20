"""A shell in a world: environment and folder go from one command to the next, as in a terminal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.readme.world import TOKEN, World

STOP_S = 120.0
"""For a process that was asked to end (seconds)."""


class Shell:
    """Runs commands in the clone.

    Args:
        world: Where.
        more: Variables besides the world's, as those that lead to a cluster.
        timeout_s: For each command (seconds).
    """

    def __init__(self, world: World, more: Mapping[str, str], timeout_s: float) -> None:
        self._world, self._more, self._timeout_s = world, more, timeout_s
        self._state = world.folder / "shell"
        self._state.unlink(missing_ok=True)  # of another run in a folder that was left

    def run(self, command: str, mark: str) -> tuple[int | None, str]:
        """Runs a line of bash; gives exit code and output.

        The code is None where time was over.
        """
        process = self.start(_bash(self._entered(mark) + self._leaving() + command), mark)
        try:
            code: int | None = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_session(process)
        return code, self.output(mark)

    def serve(self, command: str, mark: str, url: str) -> tuple[subprocess.Popen[bytes], bool]:
        """Starts a line of bash that serves; gives its process, and whether the URL answered in time."""
        process = self.start(_bash(self._entered(mark) + "exec " + command), mark)
        until = time.monotonic() + self._timeout_s
        while process.poll() is None and time.monotonic() < until:
            if _answers(url):
                return process, True
            time.sleep(0.5)
        return process, False

    def start(self, words: Sequence[str], mark: str) -> subprocess.Popen[bytes]:
        """Starts a program in a session of its own; its output goes to the mark's log."""
        with self._log(mark).open("wb") as log:
            return subprocess.Popen(
                words,
                cwd=self._world.clone,
                env=self._world.environment(mark) | self._more,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self, mark: str) -> str:
        """What a command printed, of progress the last state."""
        lines = self._log(mark).read_text(encoding="utf-8", errors="replace").split("\n")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)

    def _log(self, mark: str) -> Path:
        return self._world.folder / f"{mark.replace('/', '-').replace(':', '-')}.log"

    def _leaving(self) -> str:
        """Keeps variables and folder for the next command, whatever becomes of this one."""
        state = shlex.quote(str(self._state))
        keep = f'{{ declare -px; printf "cd %q\\n" "$PWD"; }} > {state}'
        return f"trap 'code=$?; {keep}; exit $code' EXIT\n"

    def _entered(self, mark: str) -> str:
        """Takes up what the last command left."""
        state = shlex.quote(str(self._state))
        own = shlex.quote(f"{self._world.folder}#{mark}")
        return f"if [ -e {state} ]; then source {state}; fi\nexport {TOKEN}={own}\n"


def _bash(script: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", script]


def stop(process: subprocess.Popen[bytes]) -> int | None:
    """Sends SIGTERM and waits; gives the exit code (None: it had to be killed)."""
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a process's group; daemons that left it end by themselves, or are found later."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
