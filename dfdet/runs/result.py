"""What a run's ``result.json`` says of the software it ran with."""

from __future__ import annotations

import platform
from importlib import metadata

from dfdet import __version__

PACKAGES = ("torch", "torchvision", "ray", "deepspeed", "open_clip_torch", "timm", "numpy")


def versions() -> dict[str, str]:
    """Versions of this project, Python and the packages that decide numbers."""
    found = {"dfdet": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
