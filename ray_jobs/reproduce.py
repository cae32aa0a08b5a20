"""Trains and evaluates the rows of the paper's table, and prints ours beside what was published.

    python ray_jobs/reproduce.py --shards ROOT [--rows ln paper] [--seeds 3] [--section.field VALUE ...]

Runs, evaluation and table lie in --out; the same command goes on where it was stopped.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dfdet import cli
from dfdet.errors import ConfigError, DfdetError
from dfdet.evaluation.folder import RESULT
from dfdet.evaluation.reproduction import Options, Planned, Sets, entries, find_sets, markdown, plan, to_json
from dfdet.runs.atomic import write_bytes_atomic
from ray_jobs.cluster import absolute, absolute_out

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

JOBS = Path(__file__).parent


class JobFailedError(DfdetError):
    """A training or the evaluation ended with this exit code, and has said why."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} ended with exit code {code}; give the same command again to go on")
        self.exit_code = code


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    try:
        own, training = split(argv)
        options = cli.parse_flags(Options, own, "reproduce.py")
        sets, runs = find_sets(Path(absolute(options.shards))), plan(options)
        for run in {run.recipe: run for run in runs}.values():
            cli.parse(train_command(run, sets, Path("out"), training)[2:], "train.py")  # refuses bad flags
        return reproduce(runs, sets, Path(absolute_out(options.out)), training)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of this job with their values, and those of the training, which have a dot."""
    own: list[str] = []
    training: list[str] = []
    current = own
    for arg in argv:
        if arg.startswith("--"):
            current = training if "." in arg.partition("=")[0] else own
            if arg.startswith(("--data.train", "--data.val", "--data.test", "--run.name", "--run.storage")):
                raise ConfigError(f"{arg.partition('=')[0]}: set by --shards and --out here; leave it out")
        current.append(arg)
    return own, training


def reproduce(runs: Sequence[Planned], sets: Sets, out: Path, training: Sequence[str]) -> int:
    """Trains all runs, evaluates them together, writes and prints the table."""
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run.name}", flush=True)
        _call(run.name, train_command(run, sets, out, training))
    key = hashlib.sha256(json.dumps([run.name for run in runs]).encode()).hexdigest()[:8]
    evaluation = out / f"evaluation-{key}"
    _call("the evaluation", evaluate_command(runs, sets, out, evaluation))
    found = entries(json.loads((evaluation / RESULT).read_text(encoding="utf-8")), runs)
    write_bytes_atomic(out / "table.md", markdown(found).encode())
    write_bytes_atomic(out / "table.json", to_json(found).encode())
    print(f"\n{markdown(found)}\ntable: {out / 'table.md'}\nreport: {evaluation / 'report.html'}", flush=True)
    return 0


def _call(what: str, command: list[str]) -> None:
    """Runs one of our jobs as its own process, which finds what is done and resumes what is not.

    Signals go to it alone, once each: a second one would end it without a checkpoint.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise JobFailedError(what, code if code > 0 else 128 - code)


def _end_with_parent() -> None:
    """Asks Linux for a SIGTERM when the parent dies, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def train_command(run: Planned, sets: Sets, out: Path, training: Sequence[str]) -> list[str]:
    """The training of a run; test sets are the evaluation's."""
    return [
        *(sys.executable, str(JOBS / "train.py"), run.recipe, "--run.seed", str(run.seed)),
        *("--run.storage", str(out), "--run.name", run.name),
        *("--data.train", *map(str, sets.train)),
        *("--data.val", *(f"{name}={path}" for name, path in sets.val.items())),
        *("--data.test", *training),
    ]


def evaluate_command(runs: Sequence[Planned], sets: Sets, out: Path, evaluation: Path) -> list[str]:
    """The evaluation of all runs, with the threshold of the first validation set."""
    name, path = next(iter(sets.val.items()))
    return [
        *(sys.executable, str(JOBS / "evaluate.py"), "--out", str(evaluation)),
        *("--checkpoint", *(str(out / run.name) for run in runs), "--val", f"{name}={path}"),
        *("--test", *(f"{test}={where}" for test, where in sets.test.items())),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
