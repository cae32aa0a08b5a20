"""The nodes of a cluster, as a run sees them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfdet.config import Config
from ray_jobs.cluster import room

ID_DIGITS = 4


@dataclass(frozen=True)
class Node:
    """An alive node."""

    id: str
    name: str
    """Its address; with the first digits of its id where nodes share one."""
    resources: Mapping[str, float]
    """All it has, in use or not."""
    workers: int
    """Of this run that fit on it."""
    drives: bool
    """Whether the driver runs on it."""

    @property
    def needed(self) -> bool:
        """Whether the run would use it."""
        return self.drives or self.workers > 0

    @property
    def gpus(self) -> int:
        """GPUs that Ray counts there."""
        return int(self.resources.get("GPU", 0))


def worker_needs(config: Config, *, cuda: bool) -> dict[str, float]:
    """What a worker of the run takes of each resource."""
    return {"CPU": config.run.cpus_per_worker, **({"GPU": 1.0} if cuda else {})}


def describe(listed: Sequence[Mapping[str, Any]], driver: str, needs: Mapping[str, float]) -> list[Node]:
    """The alive nodes of ``ray.nodes()``, the driver's first.

    Args:
        listed: As Ray gives it.
        driver: Id of the driver's node.
        needs: What a worker takes.
    """
    alive = [node for node in listed if node["Alive"]]
    addresses = Counter(node["NodeManagerAddress"] for node in alive)
    found = [
        Node(
            id=node["NodeID"],
            name=_name(node, addresses),
            resources=node["Resources"],
            workers=room(dict(needs), node["Resources"]),
            drives=node["NodeID"] == driver,
        )
        for node in alive
    ]
    return sorted(found, key=lambda node: (not node.drives, node.name))


def _name(node: Mapping[str, Any], addresses: Counter[str]) -> str:
    address = str(node["NodeManagerAddress"])
    return address if addresses[address] == 1 else f"{address}#{node['NodeID'][:ID_DIGITS]}"


def largest_share(cpus: Sequence[float], workers: int) -> float:
    """The most CPUs a worker may take for ``workers`` of them to fit on nodes of so many; 0 if none is."""
    shares = {have / count for have in cpus if have for count in range(1, workers + 1)}
    # rounded down, so that the figure that is shown fits
    rounded = sorted({math.floor(share * 100) / 100 for share in shares} - {0.0}, reverse=True)
    return next(
        (share for share in rounded if sum(room({"CPU": share}, {"CPU": have}) for have in cpus) >= workers),
        0.0,
    )
