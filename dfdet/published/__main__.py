"""``python -m dfdet.published FILE``: what a published file is; nothing is trained.

FILE is a file, a folder of Hugging Face's form, or ``hf:OWNER/NAME[@REVISION]``.
Exit codes: 0 it is known, 2 it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from dfdet.telling import tell


def main(argv: Sequence[str]) -> int:
    """Prints the description of one source; the exit code."""
    return tell(argv, __doc__, "python -m dfdet.published FILE", _lines)


def _lines(argument: str) -> Iterable[str]:
    from dfdet.published.describing import describe

    return describe(argument)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
