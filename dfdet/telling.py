"""Commands of one argument that tell something of it, as ``python -m dfdet.published FILE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from dfdet.errors import DfdetError


def tell(argv: Sequence[str], doc: str | None, usage: str, lines: Callable[[str], Iterable[str]]) -> int:
    """Prints what ``lines`` gives for the argument, ``doc`` as help, or the usage; the exit code.

    Args:
        lines: Raises DfdetError, which is told in a line.
    """
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        sys.stdout.write((doc or "") if argv else f"usage: {usage}\n")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    try:
        sys.stdout.write("\n".join(lines(argv[0])) + "\n")
    except DfdetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0
