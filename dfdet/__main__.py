"""Trains without Ray.

    python -m dfdet [RECIPE] [--section.field VALUE ...]
    torchrun --nproc_per_node 2 -m dfdet [RECIPE] [--section.field VALUE ...]

Exit codes: 0 done, 2 bad input, 1 failure, 130 and 143 stopped by a signal, with a checkpoint.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from dfdet.errors import DfdetError
from dfdet.interrupts import Interrupts


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code."""
    interrupts = Interrupts()
    interrupts.install()  # before the imports, which take seconds
    from dfdet import local

    try:
        return local.main(argv, interrupts)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def end(code: int) -> NoReturn:
    """Ends the process; after a failure at once: what waits for a rank that is gone must not keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
