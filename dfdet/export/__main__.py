"""``python -m dfdet.export BUNDLE``: checks a bundle's checksums and graphs.

Exit codes: 0 it is whole, 2 it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dfdet.telling import tell


def main(argv: Sequence[str]) -> int:
    """Prints what is found of one bundle; the exit code."""
    return tell(argv, __doc__, "python -m dfdet.export BUNDLE", _lines)


def _lines(argument: str) -> Iterable[str]:
    from dfdet.export.verify import verify

    return verify(Path(argument))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
