"""Runs every fenced command of README.md and docs/*.md in a fresh clone of the last commit.

    python -m tests.readme [--cluster] [--install] [--worktree] [--only PATTERN] [--keep] [--world FOLDER]

Commands are run as they stand, or with the changes of ``tests/readme/edits.py``, which are printed. Exit
code 1 if one fails, or leaves a process, or a file outside of the temporary folder.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.readme import traces
from tests.readme.head import head
from tests.readme.pages import blocks
from tests.readme.run import Outcome, Runner, table
from tests.readme.shell import Shell
from tests.readme.world import World, world


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code."""
    options = _parsed(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs ends, and the folder goes
    before = traces.places()
    made = world(
        options.python,
        install=options.install,
        worktree=options.worktree,
        keep=options.keep or options.world is not None,
        kept=options.world,
    )
    with made as place:
        print(f"in {place.folder}", flush=True)
        outcomes: list[Outcome] = []
        grace_s = 0.0
        try:
            outcomes = _run(place, options)
            grace_s = traces.GRACE_S
        finally:
            left = traces.end_processes(place.folder, grace_s)
        left += [f"{path} is new" for path in sorted(traces.places() - before)]
        outcomes += [Outcome("", each, "FAILED", "left behind") for each in left]
        print(f"\n{table(outcomes)}")
    return int(not outcomes or any(each.state == "FAILED" for each in outcomes))


def _run(place: World, options: argparse.Namespace) -> list[Outcome]:
    with ExitStack() as stack:
        files = stack.enter_context(_files(place.folder / "host"))
        variables = stack.enter_context(head(place, options.timeout_s)) if options.cluster else {}
        shell = Shell(place, variables, options.timeout_s)
        names = {"world": place.folder, "port": files.server_address[1]}
        runner = Runner(place, shell, names, cluster=options.cluster, only=options.only)
        return runner.run(blocks(place.clone))


def _files(folder: Path) -> ThreadingHTTPServer:
    """Serves a folder over HTTP until it is closed."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return server


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.readme", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="start a local head for `ray job submit`")
    parser.add_argument("--install", action="store_true", help="make install in the clone, from the network")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="else: of this environment")
    parser.add_argument("--worktree", action="store_true", help="files as they are, not as committed")
    parser.add_argument("--only", type=_pattern, help="run what this pattern is found in: PAGE:LINE COMMAND")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    parser.add_argument("--world", type=Path, help="go on in a folder that was left")
    parser.add_argument("--timeout_s", type=float, default=1200.0, help="for each command (seconds)")
    return parser.parse_args(argv)


def _pattern(text: str) -> str:
    re.compile(text)
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
