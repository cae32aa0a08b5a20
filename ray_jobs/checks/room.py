"""Judges room: whether the run's workers fit, in sum, on nodes, and beside what runs there now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dfdet.config import Config
from dfdet.config_checks import usable_workers
from dfdet.errors import ConfigError
from ray_jobs.checks.finding import Finding, Problem, of_cluster, of_error, rows
from ray_jobs.checks.nodes import Node, largest_share, worker_needs
from ray_jobs.cluster import check_resources, room


def counted(workers: int) -> str:
    """A number of workers, in words."""
    return f"{workers} worker{'' if workers == 1 else 's'}"


def total(nodes: Iterable[Node]) -> dict[str, float]:
    """Resources of all nodes together."""
    summed: dict[str, float] = {}
    for node in nodes:
        for kind, amount in node.resources.items():
            summed[kind] = summed.get(kind, 0.0) + amount
    return summed


def judge(
    config: Config,
    nodes: Sequence[Node],
    free: Mapping[str, float],
    most: Mapping[str, float],
    *,
    cuda: bool,
) -> list[Finding]:
    """Rows on the room for the run's workers.

    Args:
        config: Of the run.
        nodes: All alive ones.
        free: Resources that nothing holds now.
        most: Resources that nodes may come up to by demand; empty where nothing grows.
        cuda: Whether workers take a GPU each.
    """
    found = _fits(config, nodes, most, cuda=cuda)
    if found.state == "ok":
        return [found, *_free(config, free, cuda=cuda)]
    return [found]


def _fits(config: Config, nodes: Sequence[Node], most: Mapping[str, float], *, cuda: bool) -> Finding:
    here = total(nodes)
    try:
        check_resources(config, here)
    except ConfigError as error:
        return of_cluster("room", _scaled(of_error(str(error)), config, most, cuda=cuda))
    placed = sum(node.workers for node in nodes)
    workers = usable_workers(config, placed)
    if workers is None:
        return of_cluster("room", _scaled(_split(config, nodes, placed), config, most, cuda=cuda))
    each = f"{config.run.cpus_per_worker:g} CPU" + (" + 1 GPU" if cuda else "")
    share = config.data.global_batch // workers
    return Finding(
        "room",
        (),
        "ok",
        f"{counted(workers)} of {each}, {share} of {config.data.global_batch} samples a step each;"
        f" there is room for {placed}",
    )


def _split(config: Config, nodes: Sequence[Node], placed: int) -> Problem:
    """Enough in sum, but no worker is spread over nodes."""
    run = config.run
    cpus = [node.resources.get("CPU", 0.0) for node in nodes]
    share = largest_share(cpus, run.fewest_workers)
    counts = [n for n in range(placed, 0, -1) if config.data.global_batch % (n * config.data.unit_size) == 0]
    remedies = [f"--run.workers {counts[0]}"] if counts and isinstance(run.workers, int) else []
    remedies += [f"--run.cpus_per_worker {share:g}"] if 0 < share < run.cpus_per_worker else []
    return Problem(
        "FAIL",
        f"run.workers={run.workers} x {run.cpus_per_worker:g} CPU: enough in sum, but nodes have room for"
        f" {placed}, since a worker is on one node",
        f"set {' or '.join(remedies)}" if remedies else "join larger nodes",
    )


def _scaled(problem: Problem, config: Config, most: Mapping[str, float], *, cuda: bool) -> Problem:
    """Where nodes come by demand, a run waits for them: only what was not seen of them is to be said."""
    needs = worker_needs(config, cuda=cuda or (config.run.device == "auto" and most.get("GPU", 0.0) >= 1))
    if room(needs, dict(most)) < config.run.fewest_workers:
        return problem
    amounts = ", ".join(f"{amount:g} {kind}" for kind, amount in most.items())
    return Problem(
        "warn",
        f"{problem.found} now; the cluster grows to {amounts}",
        "nothing: the run waits for its nodes, but they were not looked at; run the doctor again once they"
        " have come",
    )


def _free(config: Config, free: Mapping[str, float], *, cuda: bool) -> list[Finding]:
    needs = worker_needs(config, cuda=cuda)
    now = room(needs, {kind: free.get(kind, 0.0) for kind in needs})
    if now >= config.run.fewest_workers:
        return []
    problem = Problem(
        "warn",
        f"other work leaves room for {counted(now)} now",
        "wait for it (`ray status`, `ray list actors`): a run gives up after some minutes without room",
    )
    return [of_cluster("free room", problem)]


def judge_idle(nodes: Sequence[Node], config: Config, *, cuda: bool) -> list[Finding]:
    """A row on nodes that the run does not use; none where there are none."""
    idle = {node.name: list[Problem]() for node in nodes if not node.needed}
    each = f"{config.run.cpus_per_worker:g} CPU" + (" + 1 GPU" if cuda else "")
    return rows("other nodes", idle, f"no room for a worker of {each}: asked for software only")
