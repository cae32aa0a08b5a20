"""Judges machines: GPUs, memory, limits, clocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ray_jobs.checks.finding import Finding, Problem, rows
from ray_jobs.checks.nodes import Node
from ray_jobs.checks.software import Answers

GIB = 2**30
MIN_FILES = 4096
"""A reader holds a shard open for each decode thread, and Ray its sockets."""
MIN_SHM_GIB = 0.5
"""NCCL between GPUs of a node takes some 10 MB a pair and channel; Docker's own default is 64 MB."""
MIN_MEMORY_GIB = 1.0
"""Of a worker: torch alone takes half of it."""
BUSY = 0.1
"""Part of a GPU's memory that others may hold without a word."""
MAX_SKEW_S = 5.0
Look = Callable[[Node, Mapping[str, Any]], list[Problem]]
"""What is wrong on a node, by its means and its answer."""


def judge(
    machines: Answers, tried: Answers, nodes: Sequence[Node], *, cuda: bool, most: int
) -> list[Finding]:
    """Rows on GPUs, memory, limits and settings.

    Args:
        machines: Answers of ``probe_machine.machine``.
        tried: Answers of ``probe_software.try_out``.
        nodes: All alive ones.
        cuda: Whether the run uses GPUs.
        most: Workers that the run takes at most.
    """
    known = [node for node in nodes if node.name in machines]
    needed = {node.name for node in nodes if node.needed}

    def look(check: str, problem: Look, ok: str) -> list[Finding]:
        return rows(check, {node.name: problem(node, machines[node.name]) for node in known}, ok, needed)

    least = min((answer["memory"] or 0) for answer in machines.values()) / GIB
    return [
        *_gpu_rows(machines, tried, known, needed, cuda=cuda),
        *look("memory", lambda node, told: _memory(node, told, most), f"at least {least:.1f} GiB free"),
        *(look("shared memory", _shm, "room for NCCL") if cuda else []),
        *look("open files", lambda node, told: _files(told["files"]), f"at least {MIN_FILES}"),
        *look("settings", lambda node, told: _settings(told), "UTF-8; bytecode is kept"),
    ]


def _gpu_rows(
    machines: Answers, tried: Answers, nodes: Sequence[Node], needed: Collection[str], *, cuda: bool
) -> list[Finding]:
    def problems(node: Node) -> list[Problem]:
        found = _counted(node, machines[node.name]["gpus"], cuda=cuda)
        return found + (_torch_gpus(node, tried[node.name]["cuda"]) if node.name in tried else [])

    kinds = sorted({gpu["name"] for node in nodes for gpu in machines[node.name]["gpus"] or []})
    versions = sorted({answer["cuda"].get("nccl") for answer in tried.values()} - {None})
    total = sum(node.gpus for node in nodes)
    ok = f"{total}: {', '.join(kinds)}; NCCL {', '.join(versions)}" if total else "none; the run takes CPUs"
    found = rows("GPUs", {node.name: problems(node) for node in nodes}, ok, needed)
    if len(versions) > 1:
        mixed = Problem("FAIL", f"NCCL {' and '.join(versions)}", "install one version of torch on all nodes")
        found += rows("NCCL", {name: [mixed] for name in tried if tried[name]["cuda"]}, "", needed)
    return found


def _counted(node: Node, listed: Sequence[Mapping[str, Any]] | None, *, cuda: bool) -> list[Problem]:
    """Ray's count of GPUs against that of the driver."""
    if listed is None:
        return []
    if len(listed) < node.gpus:
        return [
            Problem(
                "FAIL" if cuda else "warn",
                f"nvidia-smi lists {len(listed)} GPUs, Ray counts {node.gpus}",
                "see nvidia-smi there; restart the node, or start Ray there with --num-gpus as many as work",
            )
        ]
    if listed and not node.gpus and cuda:
        return [Problem("warn", f"{len(listed)} GPUs that Ray does not count", "ray start --num-gpus there")]
    busy = [i for i, gpu in enumerate(listed) if cuda and _part_used(gpu) > BUSY]
    if busy:
        return [Problem("warn", f"GPU {busy} has memory in use", "see nvidia-smi there: end what holds it")]
    return []


def _part_used(gpu: Mapping[str, Any]) -> float:
    try:
        return float(gpu["used_mib"]) / float(gpu["memory_mib"])
    except (ValueError, ZeroDivisionError):  # "[N/A]", as of a part of a GPU
        return 0.0


def _torch_gpus(node: Node, cuda: Mapping[str, Any]) -> list[Problem]:
    if not cuda or cuda["count"] >= node.gpus:
        return []
    built = f"its CUDA is {cuda['cuda']}" if cuda["cuda"] else "it is built without CUDA"
    return [
        Problem(
            "FAIL",
            f"torch sees {cuda['count']} GPUs, Ray counts {node.gpus}; {built}",
            "install torch for the driver's CUDA there, or set --run.device cpu",
        )
    ]


def _memory(node: Node, told: Mapping[str, Any], most: int) -> list[Problem]:
    free, workers = told["memory"], min(node.workers, most)
    if free is None or not workers or free / GIB >= MIN_MEMORY_GIB * workers:
        return []
    return [
        Problem(
            "warn",
            f"{free / GIB:.1f} GiB free for {workers} of the workers",
            f"end what else runs there, or raise --run.cpus_per_worker above"
            f" {node.resources.get('CPU', 0.0) / workers:g}, so that fewer come there",
        )
    ]


def _shm(node: Node, told: Mapping[str, Any]) -> list[Problem]:
    free = told["shm"]
    if node.workers < 2 or free is None or free / GIB >= MIN_SHM_GIB:
        return []
    return [
        Problem(
            "warn",
            f"{free / 2**20:.0f} MiB free for NCCL",
            "docker run --shm-size 8g; on Kubernetes an emptyDir of medium Memory at /dev/shm",
        )
    ]


def _files(limit: int) -> list[Problem]:
    if limit < 0 or limit >= MIN_FILES:  # -1: none
        return []
    return [Problem("warn", f"{limit} at most", "`ulimit -n 65536` there, before `ray start`")]


def _settings(told: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if told["encoding"].upper().replace("-", "") != "UTF8":
        remedy = "export LANG=C.UTF-8 there, before `ray start`"
        problems.append(Problem("warn", f"text is {told['encoding']}", remedy))
    if told["compiles_always"]:
        cause = "PYTHONDONTWRITEBYTECODE is set: each process compiles all code anew, some 10 s of each start"
        problems.append(Problem("warn", cause, "`unset PYTHONDONTWRITEBYTECODE` there, before `ray start`"))
    return problems


def skew_s(asked: float, told: float, heard: float) -> tuple[float, float]:
    """A clock's lead over the driver's, and how far off that may be (seconds).

    Args:
        asked: Driver's time of the question.
        told: The node's time.
        heard: Driver's time of the answer: the node told its time somewhere in between.
    """
    return told - (asked + heard) / 2, (heard - asked) / 2


def judge_clocks(skews: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """A row on the clocks of nodes, by what :func:`skew_s` says of each."""
    far = {name: _skewed(skew, error) for name, (skew, error) in skews.items()}
    widest = max((abs(skew) + error for skew, error in skews.values()), default=0.0)
    return rows("clocks", far, f"within {widest:.2f} s of the driver's")


def _skewed(skew: float, error: float) -> list[Problem]:
    if abs(skew) - error <= MAX_SKEW_S:
        return []
    way = "ahead of" if skew > 0 else "behind"
    return [
        Problem(
            "warn",
            f"{abs(skew):.0f} s {way} the driver's: logs mislead, S3 refuses requests from 15 minutes on",
            "there: `timedatectl set-ntp true`, or `chronyc makestep`",
        )
    ]
