"""From `python ray_jobs/train.py demo` to its first step: where the time goes.

    python benchmarks/startup.py [--rounds 5] [--against CHECKOUT] [--python PYTHON]

Runs the real command on a new Ray each time and stops it after the first step. The parts are the run's
own (``timings.startup_s`` in ``result.json``); the total is measured from outside, as the time until
``metrics.jsonl`` has a record, and so is the CPU time of the command and all its processes, which other
work on the machine disturbs less. With another checkout (``git worktree add``) the sides alternate, and
the ratio is this one's over the other's. ``idle`` tells whether the machine was quiet enough: of a busy
machine only the CPU time and the ratios mean anything. The table has medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL_S, STOP_S, LIMIT_S = 0.05, 60.0, 300.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Start:
    """One start of a checkout (seconds; idle as a fraction of the machine)."""

    total: float
    cpu: float
    idle: float
    parts: dict[str, float]


def start_once(checkout: Path, python: str, storage: Path) -> Start:
    """Runs the command to its first step, then stops it.

    Raises:
        SystemExit: It ended without a step.
    """
    name = f"startup-{time.time_ns()}"
    command = [python, "ray_jobs/train.py", "demo", "--run.storage", str(storage), "--run.name", name]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, began = machine_times(), time.perf_counter()
    with (storage / f"{name}.out").open("w+") as out:
        process = subprocess.Popen(
            [*command, "--engine.log_every", "1"],
            cwd=checkout,
            env=env | {"PYTHONPATH": str(checkout)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for_step(process, storage / name / "metrics.jsonl")
            total, cpu, after = time.perf_counter() - began, tree_cpu(process.pid), machine_times()
        finally:
            stop(process)
        if not (storage / name / "metrics.jsonl").exists():
            out.seek(0)
            sys.exit(f"{checkout}: no first step:\n{out.read()[-2000:]}")
    idle = (after[0] - before[0]) / (after[1] - before[1])
    return Start(total, cpu, idle, parts_of(storage / name / "result.json"))


def wait_for_step(process: subprocess.Popen[Any], metrics: Path) -> None:
    """Until the run has a record, or the command ended or took too long."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_size:
            return
        time.sleep(POLL_S)


def stop(process: subprocess.Popen[Any]) -> None:
    """Asks the run to end, and sees to it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def parts_of(result: Path) -> dict[str, float]:
    """The run's own account; empty where it has none."""
    if not result.exists():
        return {}
    parts: dict[str, float] = json.loads(result.read_text()).get("timings", {}).get("startup_s", {})
    return parts


def machine_times() -> tuple[float, float]:
    """Idle and all time of all CPUs since boot (ticks)."""
    times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def tree_cpu(root: int) -> float:
    """User and system time of a process and all below it, with those that have ended (seconds)."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    return sum(ticks for pid, ticks in spent.items() if is_below(pid, root, parents)) / TICKS


def is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    """Whether a process is the root or descends from it."""
    while pid > 1 and pid != root:
        pid = parents.get(pid, 0)
    return pid == root


def rows_of(starts: Sequence[Start]) -> dict[str, float]:
    """Medians by row of the table."""
    parts = {name: [start.parts.get(name, 0.0) for start in starts] for name in starts[0].parts}
    rows = {name: statistics.median(seconds) for name, seconds in parts.items()}
    rows["first step after"] = statistics.median(start.total for start in starts)
    rows["CPU time"] = statistics.median(start.cpu for start in starts)
    return rows


def show(sides: dict[str, list[Start]]) -> None:
    """Prints the table."""
    ours, *others = (rows_of(starts) for starts in sides.values())
    heads = "".join(f"{name:>12}" for name in sides)
    print(f"{'seconds':<18}{heads}" + ("       ratio" if others else "       share"))
    for name, seconds in ours.items():
        line = f"{name:<18}{seconds:12.2f}"
        if others:
            other = others[0].get(name)
            line += f"{'-':>12}{'-':>12}" if not other else f"{other:12.2f}{seconds / other:11.2f}x"
        else:
            line += f"{seconds / ours['first step after']:12.0%}"
        print(line)
    print(
        "idle              "
        + "".join(f"{statistics.median(s.idle for s in v):12.0%}" for v in sides.values())
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each side (times)")
    parser.add_argument("--against", type=Path, help="another checkout, with the demo set built")
    parser.add_argument("--python", default=sys.executable, help="interpreter of both sides")
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"there": options.against.resolve()} if options.against else {})
    sides: dict[str, list[Start]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        for number in range(options.rounds + 1):  # the first fills caches of bytecode and files
            for name, checkout in checkouts.items():
                start = start_once(checkout, options.python, Path(storage))
                print(
                    f"{name}: {start.total:.1f} s, CPU {start.cpu:.1f} s, idle {start.idle:.0%}"
                    + ("  (not counted)" if number == 0 else ""),
                    flush=True,
                )
                sides[name] += [start] if number else []
    show(sides)


if __name__ == "__main__":
    main()
