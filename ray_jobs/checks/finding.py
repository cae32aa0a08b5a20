"""Findings: the rows of the doctor's table, and its last words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.table import Table
from rich.text import Text

State = Literal["ok", "warn", "FAIL"]
STYLES = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
SHOWN = 2
"""Nodes that a row names; of more it says how many."""
NAME_WIDTH = 20
"""Of an address with the first digits of an id (characters)."""


@dataclass(frozen=True)
class Finding:
    """A row: what was looked at, where, and what was found."""

    check: str
    nodes: tuple[str, ...]
    """Their names; empty: of the cluster as a whole."""
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Problem:
    """What is wrong on a node."""

    state: State
    found: str
    remedy: str


def of_error(message: str, state: State = "FAIL") -> Problem:
    """A problem from an error's line, which is written as value, cause; remedy."""
    found, _, remedy = message.partition("; ")
    return Problem(state, found, remedy or "see the message")


def of_cluster(check: str, problem: Problem) -> Finding:
    """A row on no node in particular."""
    return Finding(check, (), problem.state, problem.found, problem.remedy)


def rows(
    check: str,
    problems: Mapping[str, Sequence[Problem]],
    ok: str,
    needed: Collection[str] | None = None,
) -> list[Finding]:
    """A row for each problem with the nodes that have it; one of state ``ok`` where there is none.

    Args:
        check: What was looked at.
        problems: By the name of each node that was looked at.
        ok: What to say where all is well.
        needed: Nodes that the run will use, None for all: what others lack is a warning.
    """
    where: dict[Problem, list[str]] = {}
    for name, found in problems.items():
        for problem in found:
            spared = needed is not None and name not in needed and problem.state == "FAIL"
            where.setdefault(replace(problem, state="warn") if spared else problem, []).append(name)
    if not where:
        return [Finding(check, tuple(problems), "ok", ok)] if problems else []
    return [
        Finding(check, tuple(names), problem.state, problem.found, problem.remedy)
        for problem, names in where.items()
    ]


def label(finding: Finding, total: int) -> str:
    """Which of ``total`` nodes: names where something is wrong, else how many."""
    names = finding.nodes
    if not names:
        return "cluster"
    if len(names) == total > 1:
        return f"all {total}"
    if finding.state == "ok" and len(names) > 1:
        return f"{len(names)} of {total}"
    return ", ".join(names[:SHOWN]) + (f" +{len(names) - SHOWN}" if len(names) > SHOWN else "")


def table(findings: Sequence[Finding]) -> Table:
    """All rows; remedies follow below it, where a command is not broken into columns."""
    made = Table("check")
    made.add_column("nodes", max_width=NAME_WIDTH, overflow="fold")
    made.add_column("state")
    made.add_column("found", overflow="fold")
    for each in findings:
        # as text: a path may hold what rich would take for markup
        cells = (each.check, label(each, node_count(findings)))
        made.add_row(*map(Text, cells), Text(each.state, style=STYLES[each.state]), Text(each.found))
    return made


def remedies(findings: Sequence[Finding]) -> list[str]:
    """A line for each row that is not ok, failures first."""
    wrong = sorted((each for each in findings if each.state != "ok"), key=lambda each: each.state != "FAIL")
    total = node_count(findings)
    return [f"{each.state} {each.check} ({label(each, total)}): {each.remedy}" for each in wrong]


def node_count(findings: Sequence[Finding]) -> int:
    """Nodes that some row speaks of."""
    return len({name for each in findings for name in each.nodes})


def summary(findings: Sequence[Finding], name: str) -> str:
    """The last line: whether the run would work."""
    states = [each.state for each in findings]
    failed, warned = states.count("FAIL"), states.count("warn")
    verdict = f"{name} would not run here" if failed else f"{name} would run here"
    return f"{verdict}: {states.count('ok')} ok, {warned} warn, {failed} FAIL"
