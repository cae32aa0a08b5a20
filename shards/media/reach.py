"""Tells a storage that is away for the moment from a file that is damaged for good."""

from __future__ import annotations

import errno
from pathlib import Path

from dfdet.errors import DfdetError

AWAY = frozenset(
    {
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""A bad sector (EIO) is not among them: it would end every run at the same file."""


class StorageAwayError(DfdetError):
    """A file cannot be reached now: the run ends, and nothing is recorded against the file."""


def check_reach(path: Path, error: OSError) -> None:
    """Ends the run if the error tells of the storage rather than of the file.

    Raises:
        StorageAwayError: It does.
    """
    if error.errno in AWAY:
        raise StorageAwayError(
            f"{path} cannot be reached ({error.strerror}); see to the storage, the same command goes on"
        ) from error
