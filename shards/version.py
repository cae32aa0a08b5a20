"""The program's version, for manifests."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """As installed."""
    try:
        return importlib.metadata.version("dfdet")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
