"""The epoch plan at scale: its cost by samples, and what blocks and lanes save and cost in randomness.

    python benchmarks/plan.py [--largest 1e8] [--shuffled] [--mode single] [--shards 1000] [--cache 100]

First the cost, each in a process of its own and on one thread: CPU seconds to plan, to the batch in the
middle (a resume) and for each batch then, and the peak memory, columns of 16 bytes a sample included.
Then a simulation without any data, of a million samples in shards of 60 MB: what a node of 8 ranks with
a bounded cache downloads in an epoch, and how the composition of batches varies against that of a full
shuffle. Half of its samples are groups of a real and four fakes, a quarter is of reals only and a quarter
of one method only, in shards of their own: the sets that mix worst.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfdet.data.plan import EpochPlan, Mode, PlanSpec, epoch_plan

SAMPLES, SHARD_MB, NODE = 1_000_000, 60, 8
RANKS = (1, 8, 64, 256, 1024)
BLOCKS = (0, 1, 4, 8, 16, 64)
METHODS, FRAMES = 4, 32


@dataclass(frozen=True, eq=False)
class Columns:
    """Synthetic columns of an index."""

    shard: NDArray[Any]
    label: NDArray[Any]
    method: NDArray[Any]
    group: NDArray[Any]
    group_exact: NDArray[np.bool_]
    frame: NDArray[Any]


def columns(samples: int, per_shard: int, *, mixed: bool = False, shuffled: bool = False) -> Columns:
    """Groups of a real and four fakes of 32 frames each, written one after another.

    Args:
        samples: Rows.
        per_shard: Samples of a shard.
        mixed: Make the third quarter of the shards a set of reals only, and the last one of one method
            only, all groups of one video: the sets that mix worst.
        shuffled: Rows in no order, as in foreign tars.
    """
    row = np.arange(samples, dtype=np.int32)
    if shuffled:
        np.random.default_rng(0).shuffle(row)
    method = (row // FRAMES % (METHODS + 1)).astype(np.int16)
    group = row // (FRAMES * (METHODS + 1))
    if mixed:
        method[samples // 2 :], method[samples * 3 // 4 :] = 0, METHODS + 1
        group[samples // 2 :] = samples + row[samples // 2 :] // FRAMES
    return Columns(
        shard=np.arange(samples, dtype=np.int32) // per_shard,
        label=(method > 0).astype(np.int8),
        method=method,
        group=group,
        group_exact=np.ones(samples, bool),
        frame=row % FRAMES,
    )


# ---------------------------------------------------------------- cost


def cost(samples: int, mode: Mode, block: int, lanes: int, shuffled: bool) -> dict[str, float]:
    """Seconds and memory of a plan, in this process."""
    index = columns(samples, 1000, shuffled=shuffled)
    start = time.process_time()
    plan = epoch_plan(index, PlanSpec(0, 4096, mode, block, lanes), 0)
    planned = time.process_time()
    middle = len(plan) // 2
    plan.ids[middle]
    resumed = time.process_time()
    more = min(200, len(plan) - middle)
    for number in range(middle, middle + more):
        plan.ids[number]
    return {
        "plan": planned - start,
        "resume": resumed - planned,
        "batch": (time.process_time() - resumed) / more,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def cost_apart(*arguments: Any) -> dict[str, float]:
    """:func:`cost` in a new process, so that peaks do not mix."""
    command = [sys.executable, __file__, "--cost", json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_costs(largest: int, rounds: int, shuffled: bool) -> None:
    """Table of the cost by samples and mode; 10^7 samples and more once."""
    print(f"Cost with rows {'in no order' if shuffled else 'by group'}, batches of 4,096")
    print(f"{'samples':>12} {'mode':8}{'block':>7}{'lanes':>6}"
          f"{'plan s':>8}{'resume s':>10}{'batch ms':>10}{'peak GB':>9}")  # fmt: skip
    for samples in (10**power for power in range(5, 9) if 10**power <= largest):
        for mode, block, lanes in (("single", 0, 1), ("single", 16, 64), ("pair", 0, 1), ("rotate", 0, 1)):
            times = rounds if samples < 10**7 else 1
            found = [cost_apart(samples, mode, block, lanes, shuffled) for _ in range(times)]
            middle = {name: statistics.median(run[name] for run in found) for name in found[0]}
            print(f"{samples:>12,} {mode:8}{block or 'all':>7}{lanes:>6}"
                  f"{middle['plan']:>8.2f}{middle['resume']:>10.3f}{middle['batch'] * 1000:>10.2f}"
                  f"{middle['memory']:>9.2f}", flush=True)  # fmt: skip


# ---------------------------------------------------------------- reads


def batch_of(ranks: int) -> int:
    """Samples of a global batch: 32 a rank, at least 256."""
    return max(256, 32 * ranks)


def lanes_of(policy: str, ranks: int) -> int:
    """Lanes of a policy."""
    return {"1": 1, "1 a node": -(-ranks // NODE), "1 a rank": ranks, "4 a rank": 4 * ranks}[policy]


def reads(shards: NDArray[Any], nodes: int, node: int, cache: int) -> tuple[int, int, int]:
    """Shards that a node touches and downloads in an epoch, with a cache of the last used ones.

    The third number is the shards of its first batch, which it must wait for.

    Args:
        shards: Shard of each entry of the plan, [batches, B].
        nodes: Number of nodes.
        node: This node.
        cache: Shards that it can keep (shards).
    """
    share = shards.shape[1] // nodes
    mine = shards[:, node * share : (node + 1) * share]
    kept: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for row in mine:
        for shard in np.unique(row).tolist():
            fetched += shard not in kept
            kept[shard] = None
            kept.move_to_end(shard)
            if len(kept) > cache:
                kept.popitem(last=False)
    return len(np.unique(mine)), fetched, len(np.unique(mine[0]))


def print_reads(index: Columns, mode: Mode, cache: int) -> None:
    """Table of what a node reads in an epoch, by block size, lanes and ranks."""
    whole = (int(index.shard.max()) + 1) * SHARD_MB / 1000
    print(f"\nA node's epoch: shards touched, GB fetched, fetched by all nodes / the set ({whole:.0f} GB),"
          f" GB before the first batch; cache {cache} shards")  # fmt: skip
    print(f"{'block':>6} {'lanes':8}" + "".join(f"{ranks:>22,} ranks" for ranks in RANKS))
    for block in BLOCKS:
        for policy in ("1", "1 a node", "1 a rank", "4 a rank") if block else ("1",):
            cells = [cell_of_reads(index, mode, block, policy, ranks, cache, whole) for ranks in RANKS]
            print(f"{block or 'all':>6} {policy:8}" + "".join(f"{cell:>28}" for cell in cells), flush=True)


def cell_of_reads(
    index: Columns, mode: Mode, block: int, policy: str, ranks: int, cache: int, whole: float
) -> str:
    """Median over a few nodes, as text."""
    spec = PlanSpec(0, batch_of(ranks), mode, block, lanes_of(policy, ranks))
    shards = index.shard[np.asarray(epoch_plan(index, spec, 0, lazy=False).ids)]
    nodes = -(-ranks // NODE)
    some = sorted({0, nodes // 3, nodes - 1})
    found = [reads(shards, nodes, node, cache) for node in some]
    touched, fetched, first = (statistics.median(column) for column in zip(*found, strict=True))
    size = fetched * SHARD_MB / 1000
    return f"{touched:.0f}, {size:.1f}, {size * nodes / whole:.1f}x, {first * SHARD_MB / 1000:.1f}"


# ---------------------------------------------------------------- randomness


def spread(index: Columns, plan: EpochPlan) -> dict[str, float]:
    """Variance of shares between batches over that of a full shuffle, and distinct groups and shards."""
    ids = np.asarray(plan.ids)
    batches, size = ids.shape
    correction = (1 - size / len(index.label)) / size
    fakes = index.label[ids].mean(axis=1)
    share = index.label.mean()
    ratios = []
    for method in range(int(index.method.max()) + 1):
        shares, mean = (index.method[ids] == method).mean(axis=1), (index.method == method).mean()
        ratios.append(((shares - mean) ** 2).mean() / (mean * (1 - mean) * correction))
    some = ids[:: max(1, batches // 50)]
    return {
        "fake": ((fakes - share) ** 2).mean() / (share * (1 - share) * correction),
        "method": float(np.mean(ratios)),
        "group": statistics.mean(len(np.unique(index.group[row])) for row in some),
        "shard": statistics.mean(len(np.unique(index.shard[row])) for row in some),
    }


def shuffle(index: Columns, batch: int, epoch: int) -> EpochPlan:
    """A full shuffle by NumPy, to compare with."""
    order = np.random.default_rng(epoch).permutation(len(index.label))
    ids = order[: len(order) // batch * batch].reshape(-1, batch)
    return EpochPlan(ids, np.ones_like(ids, bool))


def print_spread(index: Columns, batches: tuple[int, ...] = (256, 8192)) -> None:
    """Table of the randomness by block size and lanes, medians of three epochs."""
    print("\nComposition of batches of single samples (variance between batches / that of draws without"
          " replacement; 1 is a full shuffle)")  # fmt: skip
    print(f"{'batch':>6}{'block':>7}{'lanes':>6}{'fake share':>12}{'methods':>9}{'groups':>9}{'shards':>9}")
    for batch in batches:
        kinds = [(0, 1)] + [(block, lanes) for block in BLOCKS[1:] for lanes in (1, 8, 32, 128)]
        for block, lanes in [(-1, 1), *kinds]:
            spec = PlanSpec(0, batch, "single", max(block, 0), lanes)
            plans = (
                shuffle(index, batch, epoch) if block < 0 else epoch_plan(index, spec, epoch, lazy=False)
                for epoch in range(3)
            )
            found = [spread(index, plan) for plan in plans]
            middle = [statistics.median(run[name] for run in found) for name in found[0]]
            name = {-1: "NumPy", 0: "all"}.get(block, str(block))
            print(f"{batch:>6}{name:>7}{lanes:>6}{middle[0]:>12.2f}{middle[1]:>9.2f}"
                  f"{middle[2]:>9.0f}{middle[3]:>9.0f}", flush=True)  # fmt: skip


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--largest", type=float, default=1e8, help="samples of the largest plan (samples)")
    parser.add_argument("--rounds", type=int, default=3, help="plans of each kind below 10^7 (times)")
    parser.add_argument("--shuffled", action="store_true", help="rows in no order, as in foreign tars")
    parser.add_argument("--mode", choices=("single", "pair", "rotate"), default="single")
    parser.add_argument("--shards", type=int, default=1000, help="shards of the simulation (shards)")
    parser.add_argument("--cache", type=int, default=100, help="shards that a node keeps (shards)")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        print(json.dumps(cost(*json.loads(options.cost))))
        return
    print_costs(int(options.largest), options.rounds, options.shuffled)
    index = columns(SAMPLES, SAMPLES // options.shards, mixed=options.mode == "single")
    print_reads(index, options.mode, options.cache)
    print_spread(columns(SAMPLES, SAMPLES // options.shards, mixed=True))


if __name__ == "__main__":
    main()
