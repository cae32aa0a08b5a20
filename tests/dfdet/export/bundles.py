"""Exports in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfdet.export.bundle import write_bundle
from dfdet.export.request import Options, open_request


def exported(source: Path | str, out: Path, **options: Any) -> Path:
    return write_bundle(open_request(Options(checkpoint=str(source), out=str(out), **options)))


def tree(folder: Path) -> dict[str, bytes]:
    """Bytes of all files by their relative paths."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
