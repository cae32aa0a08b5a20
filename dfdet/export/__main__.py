"""``python -m dfdet.export BUNDLE``: checks a bundle's checksums and graphs.

Exit codes: 0 it is whole, 2 it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dfdet.errors import DfdetError


def main(argv: Sequence[str]) -> int:
    """Prints what is found of one bundle; the exit code."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        sys.stdout.write((__doc__ or "") if argv else "usage: python -m dfdet.export BUNDLE\n")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    from dfdet.export.verify import verify

    try:
        sys.stdout.write("\n".join(verify(Path(argv[0]))) + "\n")
    except DfdetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
