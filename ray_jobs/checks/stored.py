"""Judges what is stored: the run storage that all nodes share, shard sets, the cache of remote ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from ray_jobs.checks.finding import Finding, Problem, of_error, rows
from ray_jobs.checks.machines import GIB
from ray_jobs.checks.software import Answers

LOW_GIB = 1.0
"""Free space of the storage of runs below which it is told."""


def judge_storage(storage: str, written: Answers, seen: Answers, driver: str) -> list[Finding]:
    """Rows on ``run.storage``: whether each node writes there, and whether it is one and the same.

    Args:
        storage: The config's.
        written: Answers of ``probe_storage.write``.
        seen: Answers of ``probe_storage.look``, of nodes that could write; ``unseen`` by node name.
        driver: Name of the driver's node.
    """
    refused = {name: _refused(storage, answer["error"]) for name, answer in written.items()}
    free = [answer["free"] for answer in written.values() if answer["free"] is not None]
    ok = f"{storage} takes writes, renames and locks" + (f"; {min(free) / GIB:.1f} GiB free" if free else "")
    if free and min(free) < LOW_GIB * GIB:
        remedy = "make room there, or give another --run.storage"
        low = Problem("warn", f"{storage}: {min(free) / GIB:.2f} GiB free", remedy)
        refused = {name: problems or [low] for name, problems in refused.items()}
    found = rows("storage", refused, ok)
    if len(seen) > 1:
        found += _shared(storage, seen, driver)
    return found


def _refused(storage: str, error: str | None) -> list[Problem]:
    if error is None:
        return []
    cause = error if storage in error else f"{storage}: {error}"
    return [
        Problem("FAIL", cause, "make it writable there, or give a --run.storage that every node can write to")
    ]


def _shared(storage: str, seen: Answers, driver: str) -> list[Finding]:
    if driver not in seen:
        return []
    apart = {
        name: _apart(storage, name in seen[driver]["unseen"], driver in answer["unseen"])
        for name, answer in seen.items()
    }
    locks = {name: _lock(storage, answer["lock"]) for name, answer in seen.items() if not apart.get(name)}
    return [
        *rows("shared storage", apart, "each node reads what the others wrote"),
        *(each for each in rows("locks", locks, "") if each.state != "ok"),
    ]


def _apart(storage: str, unseen_there: bool, unseen_here: bool) -> list[Problem]:
    """Of a node: the driver's does not see its file, or it not the driver's."""
    if not (unseen_there or unseen_here):
        return []
    return [
        Problem(
            "FAIL",
            f"{storage} is another folder than on the driver's node",
            "mount one file system at this path on every node, or give one that is as --run.storage",
        )
    ]


def _lock(storage: str, lock: str | None) -> list[Problem]:
    if lock in {"held", None}:
        return []
    what = "are not seen by other nodes" if lock == "free" else f"are refused ({lock})"
    return [
        Problem(
            "warn",
            f"{storage}: locks {what}: two drivers could take one run's folder at the same moment",
            "mount with locks (NFS: nfsvers=4.1, without nolock), or start one driver a run",
        )
    ]


def judge_sets(manifests: Mapping[str, str], looked: Answers, driver: str) -> list[Finding]:
    """A row a set, or one for each thing that is wrong with it.

    Args:
        manifests: Path or URL by name of the set.
        looked: Answers of ``probe_sets.look_at_sets``.
        driver: Name of the node to which the others are compared, if it is among them.
    """
    found = []
    for name, path in manifests.items():
        answers = {node: told[name] for node, told in looked.items()}
        digests = {node: answer.get("manifest") for node, answer in answers.items()}
        problems = {node: _set_problems(answer["problems"], path) for node, answer in answers.items()}
        healthy = [node for node in answers if not problems[node]]
        for node, digest in digests.items():
            if digest and digests.get(driver) and digest != digests[driver]:
                problems[node] = [
                    Problem(
                        "FAIL",
                        f"{path}: another manifest than the driver's node sees",
                        "mount the same folder at this path on every node, or copy the set there again",
                    )
                ]
        found += rows(f"set {name}", _only_there(problems, healthy, path), _read(list(answers.values())))
    return found


def _set_problems(messages: Sequence[str], path: str) -> list[Problem]:
    """The first problem, and how many more there are: a copy that broke off misses thousands."""
    if not messages:
        return []
    first = of_error(messages[0])
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return [Problem("FAIL", first.found + more, first.remedy)]


def _only_there(
    problems: Mapping[str, list[Problem]], healthy: Collection[str], path: str
) -> dict[str, list[Problem]]:
    """Where other nodes read a file that one does not find, that node's mount is to be mended."""
    folder = path.rpartition("/")[0]
    mount = f"mount {folder} there as on {', '.join(sorted(healthy)[:1])}, or copy the set to that node"

    def mended(problem: Problem) -> Problem:
        lacks = healthy and "://" not in path and ("missing" in problem.found or "no such" in problem.found)
        return Problem(problem.state, problem.found, mount) if lacks else problem

    return {node: [mended(problem) for problem in found] for node, found in problems.items()}


def _read(answers: Sequence[Mapping[str, int]]) -> str:
    told = [answer for answer in answers if "tars" in answer]
    if not told:
        return "not read"
    read, read_bytes = (sum(answer[key] for answer in told) for key in ("read", "read_bytes"))
    tars, size = told[0]["tars"], told[0]["bytes"]
    there = f"{tars} tar{'s' * (tars > 1)}, {_size(size)}, "
    there += f"{sum(answer['sized'] for answer in told)} looked for" if told[0]["remote"] else "in place"
    digests = f"SHA-256 right of the {read} read ({_size(read_bytes)})" if read else "no SHA-256 read"
    return f"{there}; {digests}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def judge_cache(folder: str, most_gib: float, machines: Answers, looked: Answers) -> list[Finding]:
    """A row on the disk for copies of remote shards; none where all are local."""
    sums = [sum(each.get("remote", 0) for each in told.values()) for told in looked.values()]
    remote = max(sums, default=0)
    if not remote:
        return []
    wanted = min(most_gib, remote / GIB)
    problems = {name: _room(folder, machines[name]["cache"], wanted) for name in looked}
    return rows("cache", problems, f"{PurePosixPath(folder)} has room for {wanted:.1f} GiB of remote shards")


def _room(folder: str, free: int | None, wanted_gib: float) -> list[Problem]:
    if free is None or free / GIB >= wanted_gib:
        return []
    gib = free / GIB
    return [
        Problem(
            "warn",
            f"{folder}: {gib:.1f} GiB free, wanted {wanted_gib:.1f}",
            f"set --data.cache_gib {max(1, int(gib * 0.9))}, or --data.cache_dir on a larger disk",
        )
    ]
