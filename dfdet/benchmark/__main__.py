"""``python -m dfdet.benchmark step`` or ``scaling``, with ``--help`` for the options of each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

from dfdet.errors import DfdetError

BENCHMARKS = {"step": "StepOptions", "scaling": "ScalingOptions"}
"""Module of this package and the name of its options."""


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; its exit code."""
    if not argv or argv[0] not in BENCHMARKS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(f"usage: python -m dfdet.benchmark {{{','.join(BENCHMARKS)}}} [--help]")
        return 0 if asked else 2
    module = importlib.import_module(f"dfdet.benchmark.{argv[0]}")
    options = tyro.cli(
        getattr(module, BENCHMARKS[argv[0]]), prog=f"python -m dfdet.benchmark {argv[0]}", args=argv[1:]
    )
    try:
        return int(module.run(options))
    except DfdetError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
