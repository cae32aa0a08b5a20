"""``python -m dfdet.published FILE``: what a published file is; nothing is trained.

FILE is a file, a folder of Hugging Face's form, or ``hf:OWNER/NAME[@REVISION]``.
Exit codes: 0 it is known, 2 it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dfdet.errors import DfdetError


def main(argv: Sequence[str]) -> int:
    """Prints the description of one source; the exit code."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        sys.stdout.write((__doc__ or "") if argv else "usage: python -m dfdet.published FILE\n")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    from dfdet.published.describing import describe

    try:
        sys.stdout.write("\n".join(describe(argv[0])) + "\n")
    except DfdetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
