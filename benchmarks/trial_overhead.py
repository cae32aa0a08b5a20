"""What a setting of a sweep costs beyond its bare training, and where that goes.

    python benchmarks/trial_overhead.py [--trials 4] [--epochs 3]

One sweep of the demo with settings that differ in their learning rate alone, one at a time, each with one
worker; and as often the same training bare, ``python -m dfdet`` in one process. A setting's time is what
the sweep itself counts for it (``wall_s``: from its assignment to its end), a bare training's that of its
command, imports included. Parts of the start are the runs' own (``timings.startup_s``). Medians; the first
of each, which fill caches, are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SPACE = "replace: true\ndimensions:\n  optim.lr: {low: 1.0e-2, high: 2.0e-2}\n"


def command(program: list[str], storage: Path, name: str, epochs: int) -> list[str]:
    """The training that both sides do: without test sets, as in a search."""
    return [
        *(sys.executable, *program, "demo", "--optim.epochs", str(epochs), "--run.workers", "1"),
        *("--run.storage", str(storage), "--run.name", name, "--data.test"),
    ]


def bare(storage: Path, number: int, epochs: int) -> tuple[float, dict[str, float]]:
    """Seconds of a bare training, and the parts of its start."""
    began = time.perf_counter()
    subprocess.run(
        command(["-m", "dfdet"], storage, f"bare-{number}", epochs), cwd=ROOT, check=True, capture_output=True
    )
    return time.perf_counter() - began, parts(storage / f"bare-{number}")


def sweep(storage: Path, trials: int, epochs: int) -> list[tuple[float, dict[str, float]]]:
    """Seconds of each setting, and the parts of its start."""
    space = storage / "space.yaml"
    space.write_text(SPACE)
    flags = ["--trials", str(trials), "--concurrent", "1", "--final", "0", "--pruner", "none"]
    subprocess.run(
        [*command(["ray_jobs/tune.py"], storage, "sweep", epochs), *flags, "--space", str(space)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with (storage / "sweep/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(float(row["wall_s"]), parts(storage / "sweep" / row["runs"])) for row in rows]


def parts(run: Path) -> dict[str, float]:
    """The run's own account of its start (seconds)."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return dict(result["timings"]["startup_s"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="settings, and bare trainings (times)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each (epochs)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        storage = Path(folder)
        sides = {
            "setting": sweep(storage, options.trials, options.epochs)[1:],
            "bare": [bare(storage, number, options.epochs) for number in range(options.trials)][1:],
        }
    totals = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in sides.items()}
    print(f"{'seconds':<16}{'setting':>10}{'bare':>10}")
    for name in dict.fromkeys(name for runs in sides.values() for _, start in runs for name in start):
        found = [statistics.median(start.get(name, 0.0) for _, start in runs) for runs in sides.values()]
        print(f"{name:<16}{found[0]:10.1f}{found[1]:10.1f}")
    starts = {
        name: statistics.median(sum(start.values()) for _, start in runs) for name, runs in sides.items()
    }
    rest = {name: totals[name] - starts[name] for name in totals}
    print(f"{'training, end':<16}{rest['setting']:10.1f}{rest['bare']:10.1f}")
    print(f"{'whole':<16}{totals['setting']:10.1f}{totals['bare']:10.1f}")
    print(f"overhead of a setting: {totals['setting'] - totals['bare']:.1f} s")


if __name__ == "__main__":
    main()
