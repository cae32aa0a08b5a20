"""Which nodes try their link to which, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.checks.finding import Finding, Problem

CHECK = "all-reduce"
Pair = tuple[str, str]
"""Names of two nodes."""


def rounds(names: Sequence[str]) -> list[list[Pair]]:
    """Each node with its two neighbours of a ring, in two or three rounds of separate pairs."""
    count = len(names)
    if count < 2:
        return []
    ring = [(names[i], names[(i + 1) % count]) for i in range(count if count > 2 else 1)]
    odd = [ring.pop()] if len(ring) % 2 and len(ring) > 1 else []
    return [pairs for pairs in (ring[::2], ring[1::2], odd) if pairs]


def judge(told: Mapping[Pair, Sequence[Mapping[str, Any]]], backend: str, size: int) -> list[Finding]:
    """Rows on the pairs that did not add up, or one with the speed of all.

    Args:
        told: Answers of ``probe_link.reduce``, of both ranks of a pair.
        backend: ``nccl`` or ``gloo``.
        size: Of the message (bytes).
    """
    found = []
    for (first, second), answers in told.items():
        errors = [each["error"] for each in answers if each["error"]]
        if errors:
            # a rank that waited in vain knows least
            cause = next((error for error in errors if "timeout" not in error.lower()), errors[0])
            problem = _broken(first, second, cause, backend)
            found.append(Finding(CHECK, (first, second), problem.state, problem.found, problem.remedy))
    if found or not told:
        return found
    speeds = sorted(size / max(each["seconds"] for each in answers) / 2**20 for answers in told.values())
    everyone = sorted({name for pair in told for name in pair})
    ok = f"{backend} between {len(told)} pairs of nodes, {speeds[0]:.0f} to {speeds[-1]:.0f} MiB/s"
    if len(speeds) == 1:
        ok = f"{backend} between two nodes, {speeds[0]:.0f} MiB/s"
    return [Finding(CHECK, tuple(everyone), "ok", ok)]


def _broken(first: str, second: str, error: str, backend: str) -> Problem:
    card = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    return Problem(
        "FAIL",
        f"{backend}: no sum ({error})",
        f"open all TCP ports between {first} and {second} (firewall, security group, NetworkPolicy); with"
        f" several network cards, export {card} on both before `ray start`",
    )
