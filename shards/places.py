"""Places to write to: folders, never URLs that would become folders of a strange name."""

from __future__ import annotations

import re
from pathlib import Path

from dfdet.errors import ConfigError


def local_folder(path: Path | str, flag: str = "--out") -> Path:
    """The path, if it is one.

    Args:
        path: A URL may have lost a slash as a ``Path``.
        flag: That it was given as.

    Raises:
        ConfigError: It is a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        url = re.sub(r":/+", "://", str(path), count=1)
        raise ConfigError(f"{flag} {url}: is written to a folder; give a path, and copy it afterwards")
    return Path(path)
