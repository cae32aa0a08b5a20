"""Tells whether a run would work on a cluster, or on this machine, before anybody waits for it.

    python ray_jobs/doctor.py [RECIPE] [--section.field VALUE ...] [--json_file FILE]
    python ray_jobs/doctor.py --config runs/NAME/config.json
    ray job submit --working-dir . -- python ray_jobs/doctor.py gend --data.train SET.json

It takes what `train.py` takes, asks each node for what that needs, and prints a table with a remedy
for each thing that is wrong. It trains nothing and leaves nothing behind. Exit code 0: it would run;
1: it would not; 2: no such configuration.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from dfdet import cli
from dfdet.config import Config
from dfdet.data.index import make_cache
from dfdet.errors import ConfigError
from dfdet.runs.atomic import write_bytes_atomic
from ray_jobs.checks.finding import Finding, of_cluster, of_error, remedies, summary, table
from ray_jobs.cluster import RayLostError, join_or_start, joins_cluster, with_config_file
from ray_jobs.exits import exit_code, sigterm_as_exit
from ray_jobs.preflight import with_absolute_paths

WIDTH = 100


class Options(BaseModel):
    """The doctor's own flags, beside those of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    json_file: str = ""
    """File to write the table to as well, as JSON; empty: none (path)."""
    timeout: float = Field(120.0, gt=0)
    """Longest wait for a node's answer to each question (seconds)."""
    checksum_gib: float = Field(1.0, ge=0)
    """Read for checksums by each node: tars are drawn at random, each for one node; 0: none (GiB)."""


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code."""
    return exit_code(lambda: run(argv), "stopped")


def run(argv: list[str]) -> int:
    """Reads the command line, looks, tells."""
    options, rest = parse(argv)
    config = with_absolute_paths(cli.parse(with_config_file(rest), prog="doctor.py"))
    make_cache(config.data)  # refuses a cache folder that is none
    if not config.data.train:
        raise ConfigError("data.train is empty: no training set to look at; give --data.train SET.json")
    findings = examine(config, options)
    show(findings, config.run.recipe)
    if options.json_file:
        told = json.dumps([asdict(each) for each in findings], indent=2) + "\n"
        write_bytes_atomic(Path(options.json_file).expanduser().absolute(), told.encode())
    return 1 if any(each.state == "FAIL" for each in findings) else 0


def parse(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """The doctor's own flags, and the rest for the config.

    Raises:
        ConfigError: A bad value.
        SystemExit: Help was asked for and printed (code 0).
    """
    own: list[str] = []
    rest: list[str] = []
    current = rest
    for arg in argv:
        if arg.startswith("-"):
            current = own if arg[2:].partition("=")[0].replace("-", "_") in Options.model_fields else rest
        current.append(arg)
    return cli.parse_flags(Options, own, "doctor.py"), rest


def examine(config: Config, options: Options) -> list[Finding]:
    """Joins or starts Ray, looks at its nodes, and leaves it as it was."""
    where = os.environ.get("RAY_ADDRESS", "its cluster") if joins_cluster() else "this machine"
    print(f"looking at {where} for {config.run.recipe}; nothing is trained", flush=True)
    try:
        join_or_start()
    except RayLostError as error:
        return [of_cluster("Ray", of_error(str(error)))]
    except (OSError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        remedy = "start a head with the same Ray: ray start --head, or unset RAY_ADDRESS"
        return [Finding("Ray", (), "FAIL", f"cannot be joined: {words}", remedy)]
    import ray

    from ray_jobs.checks.survey import Survey

    try:
        with sigterm_as_exit():  # after Ray's own handler
            return Survey(config, options.timeout, options.checksum_gib).findings()
    finally:
        ray.shutdown()


def show(findings: Sequence[Finding], name: str) -> None:
    """Prints table, remedies and verdict."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table(findings))
    for line in [*remedies(findings), summary(findings, name)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    sys.stdout.flush()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Ray does at exit would wait for a cluster that is gone
