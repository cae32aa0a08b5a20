"""Runs the blocks of the pages in order, and says what became of each command."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.readme import edits
from tests.readme.pages import Block, Command, commands
from tests.readme.shell import Shell, stop
from tests.readme.world import World

State = Literal["ran", "edited", "skipped", "FAILED"]
SHOWN_LINES = 20
"""Of the output of what failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command or block."""

    place: str
    text: str
    state: State
    why: str = ""
    """Of an edit or a skip, or what failed."""
    seconds: float = 0.0
    output: str = ""


@dataclass
class Serving:
    """A server that runs until the end of its block."""

    server: edits.Server
    outcome: Outcome
    process: subprocess.Popen[bytes]


@dataclass
class Runner:
    """Runs blocks in a world.

    Args:
        world: Where.
        shell: Of that world.
        names: What stands in edits.
        cluster: Whether the shell's variables lead to a cluster.
        only: Pattern of the commands and places that are run; None: all.
    """

    world: World
    shell: Shell
    names: dict[str, object]
    cluster: bool = False
    only: str | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, blocks: Iterable[Block]) -> list[Outcome]:
        """Runs all; gives the outcomes in order."""
        for block in blocks:
            if block.language == "bash":
                self._bash(block)
            elif self._wanted(block.place, block.language):
                self._other(block)
        return self.outcomes

    def _bash(self, block: Block) -> None:
        serving: list[Serving] = []
        for command in commands(block):
            if self._wanted(command.place, command.text):
                self._command(command, serving)
        for each in serving:
            self._tell(self._stopped(each))

    def _wanted(self, place: str, text: str) -> bool:
        return self.only is None or re.search(self.only, f"{place} {text}") is not None

    def _command(self, command: Command, serving: list[Serving]) -> None:
        text, reasons = edits.edited(command.text, **self.names)
        outcome = Outcome(
            command.place,
            text.replace(f"{self.world.folder}/", "WORLD/"),
            "edited" if reasons else "ran",
            "; ".join(reasons),
        )
        print(f"{outcome.place} {outcome.text}", flush=True)
        server, started = edits.server(command.text), time.monotonic()
        if why := self._skipped(command.text):
            outcome = replace(outcome, text=command.text, state="skipped", why=why)
        elif server is not None and not edits.needs_cluster(command.text):
            process, ready = self.shell.serve(text, outcome.place, server.url)
            if ready:
                seconds = time.monotonic() - started
                serving.append(Serving(server, replace(outcome, seconds=seconds), process))
                print(f"    serves after {seconds:.1f} s", flush=True)
                return
            stop(process)
            outcome = self._failed(outcome, f"{server.url} did not answer")
        else:
            outcome = self._judged(outcome, *self.shell.run(text, outcome.place))
        self._tell(replace(outcome, seconds=time.monotonic() - started))

    def _skipped(self, text: str) -> str | None:
        if why := edits.skipped(text):
            return why
        return "needs a cluster: --cluster" if edits.needs_cluster(text) and not self.cluster else None

    def _stopped(self, serving: Serving) -> Outcome:
        started = time.monotonic()
        code = stop(serving.process)
        outcome = replace(serving.outcome, text=f"{serving.outcome.text}  [until SIGTERM]")
        if code not in serving.server.exit_codes:
            outcome = self._failed(outcome, f"exit code {code} after SIGTERM")
        return replace(outcome, seconds=outcome.seconds + time.monotonic() - started)

    def _other(self, block: Block) -> None:
        """Runs Python, and writes what a file holds."""
        if block.language == "text":
            return
        print(f"{block.place} {block.language}", flush=True)
        started = time.monotonic()
        outcome = Outcome(block.place, f"[{block.language} block]", "ran")
        if block.language == "python":
            path = self.world.folder / "block.py"
            path.write_text(block.text, encoding="utf-8")
            outcome = self._judged(outcome, *self.shell.run(f"python {path}", block.place))
        elif block.file:
            (self.world.clone / block.file).write_text(block.text, encoding="utf-8")
            outcome = replace(outcome, text=f"[written as {block.file}]")
        self._tell(replace(outcome, seconds=time.monotonic() - started))

    def _judged(self, outcome: Outcome, code: int | None, output: str) -> Outcome:
        if code == 0:
            return outcome
        return self._failed(outcome, "time was over" if code is None else f"exit code {code}", output)

    def _failed(self, outcome: Outcome, why: str, output: str | None = None) -> Outcome:
        told = self.shell.output(outcome.place) if output is None else output
        return replace(outcome, state="FAILED", why=why, output=told)

    def _tell(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        print(f"    {outcome.state}, {outcome.seconds:.1f} s" + (f": {outcome.why}" if outcome.why else ""))
        if outcome.state == "FAILED":
            print(tail(outcome))
        sys.stdout.flush()


def tail(outcome: Outcome) -> str:
    """The last lines that something failed with."""
    lines = outcome.output.rstrip().splitlines()[-SHOWN_LINES:]
    return "\n".join(f"    | {line}" for line in lines)


def table(outcomes: Iterable[Outcome]) -> str:
    """All outcomes as Markdown, with their counts; of failures the last lines."""
    outcomes = list(outcomes)
    lines = ["| | s | where | what ran | why edited or not run |", "|---|---|---|---|---|"]
    for each in outcomes:
        text = each.text.replace("|", r"\|")
        cells = (each.state, f"{each.seconds:.0f}", each.place, f"`{text}`", each.why)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{each.place}: {each.why}\n{tail(each)}" for each in outcomes if each.state == "FAILED"]
    counts = Counter(each.state for each in outcomes)
    total = sum(each.seconds for each in outcomes)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join([*lines, "", f"{len(outcomes)} commands and blocks in {total:.0f} s: {told}"])
