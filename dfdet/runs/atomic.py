"""Files that are either the old or the new one, whatever is killed while they are written."""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from typing import Any


def write_json_atomic(path: Path, obj: Any) -> None:
    """Replaces a file by indented JSON, durably; NaN and infinities become null.

    Raises:
        OSError: The disk is full or not writable; the old file is intact.
    """
    write_bytes_atomic(path, to_json(obj, indent=2).encode() + b"\n")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replaces a file by ``data``: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: The disk is full or not writable; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes_once(path: Path, data: bytes) -> None:
    """Makes a file whole, or not at all where there is one; of many that try, one succeeds.

    Raises:
        FileExistsError: There is one.
        OSError: The disk is full or not writable, or has no hard links.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_synced(temporary, data)
        os.link(temporary, path)  # unlike a rename, this never replaces
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(obj: Any, indent: int | None = None) -> str:
    """JSON text of dicts, lists and numbers (NumPy's too); NaN and infinities become null."""
    return json.dumps(_plain(obj), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if hasattr(obj, "tolist"):  # NumPy arrays and scalars
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return str(obj) if isinstance(obj, Path) else obj
