"""How long a collective takes: the alpha-beta model of ring and tree over links with public figures.

A message of m bytes over one link takes ``latency + m / bandwidth``. P ranks lie on n nodes; a ring or
tree enters and leaves each node once per network card, so between nodes a collective has the
bandwidth of all the node's cards together, and a ring runs at that of its slowest stretch. Steps are
counted as NCCL's own model counts them (``src/graph/tuning.cc``). Pure functions of numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BASE_S = 4.4e-6
"""Start of a collective, whatever its size: NCCL's base latency of the LL protocol (seconds)."""


@dataclass(frozen=True)
class Link:
    """A link between two GPUs, or two nodes, in one direction."""

    name: str
    latency_s: float
    """Of one step over it (seconds)."""
    bytes_per_s: float
    """Of one link, or one network card (bytes/s)."""
    origin: str
    """Where the figures are from."""


NVLINK4 = Link("NVLink 4", 0.6e-6, 450e9, "H100 data sheet: 900 GB/s both ways; NCCL: 0.5-0.6 us a step")
PCIE4 = Link("PCIe 4 x16", 1.0e-6, 31.5e9, "16 lanes x 16 GT/s x 128/130; NCCL: 1.0 us a step")
NDR = Link("InfiniBand NDR", 5.0e-6, 50e9, "400 Gb/s a port; NCCL: 2.7-5.0 us a step")
ROCE100 = Link("100 Gb/s RoCE", 5.0e-6, 12.5e9, "100 Gb/s a port; latency as InfiniBand's in NCCL's model")
TCP10 = Link("10 Gb/s TCP", 30e-6, 1.25e9, "10 Gb/s a port; about 30 us through two kernels, an assumption")


@dataclass(frozen=True)
class Fabric:
    """Nodes of ``gpus`` GPUs joined by ``cards`` network cards each."""

    inside: Link
    between: Link
    cards: int
    gpus: int = 8

    @property
    def name(self) -> str:
        """As the table shows it."""
        cards = f"{self.cards}x " if self.cards > 1 else ""
        return f"{self.inside.name} + {cards}{self.between.name}"


FABRICS = (
    Fabric(NVLINK4, NDR, cards=8),
    Fabric(NVLINK4, ROCE100, cards=1),
    Fabric(PCIE4, ROCE100, cards=1),
    Fabric(PCIE4, TCP10, cards=1),
)


@dataclass(frozen=True)
class Ranks:
    """P ranks on a fabric, its nodes filled one after another."""

    fabric: Fabric
    count: int

    @property
    def nodes(self) -> int:
        """Nodes in use."""
        return math.ceil(self.count / self.fabric.gpus)

    @property
    def local(self) -> int:
        """Ranks of a node."""
        return min(self.count, self.fabric.gpus)

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of a ring or tree through all: its slowest stretch."""
        inside = self.fabric.inside.bytes_per_s if self.local > 1 else math.inf
        between = self.fabric.between.bytes_per_s * self.fabric.cards if self.nodes > 1 else math.inf
        return min(inside, between)

    def latency_s(self, inside: float, between: float) -> float:
        """Of so many steps inside a node and between nodes, one after another."""
        return BASE_S + inside * self.fabric.inside.latency_s + between * self.fabric.between.latency_s


def all_gather_s(bytes_each: float, ranks: Ranks) -> float:
    """Seconds until all ranks have the ``bytes_each`` of every rank: ring or recursive doubling."""
    if ranks.count == 1:
        return 0.0
    transfer = (ranks.count - 1) * bytes_each / ranks.bytes_per_s
    ring = ranks.latency_s(ranks.count - ranks.nodes, ranks.nodes - 1)
    tree = ranks.latency_s(_doublings(ranks.local), _doublings(ranks.nodes))
    return min(ring, tree) + transfer


def all_reduce_s(size: float, ranks: Ranks) -> float:
    """Seconds until all ranks have the sum of ``size`` bytes of every rank: ring or double tree.

    A ring moves 2 (P - 1) / P of the message over each link, a tree all of it twice, with fewer steps.
    """
    if ranks.count == 1:
        return 0.0
    share = (ranks.count - 1) / ranks.count
    ring = ranks.latency_s(2 * (ranks.count - ranks.nodes), 2 * (ranks.nodes - 1))
    tree = ranks.latency_s(2 * (ranks.local - 1), 2 * _doublings(ranks.nodes))
    return min(ring + 2 * share * size / ranks.bytes_per_s, tree + 2 * size / ranks.bytes_per_s)


def _doublings(count: int) -> int:
    return math.ceil(math.log2(count))
