"""What commands leave behind: processes of a world, and new names in the homes of the machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

from tests.readme.world import TOKEN

GRACE_S = 60.0
"""Ray's daemons end some seconds after their driver."""


def processes(folder: Path) -> dict[psutil.Process, str]:
    """The processes of a world, each with the mark of the command that started it."""
    found = {}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(TOKEN, "")
            if mark.partition("#")[0] == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found[process] = mark.partition("#")[2]
        except psutil.Error:  # gone, or another user's
            continue
    return found


def end_processes(folder: Path, grace_s: float = GRACE_S) -> list[str]:
    """Waits for a world's processes to end, and kills those that do not; gives what these were."""
    until = time.monotonic() + grace_s
    while (left := processes(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    told = []
    for process, mark in left.items():
        try:
            told.append(f"{mark}: process {process.pid}: {' '.join(process.cmdline())[:100]}")
            process.kill()
        except psutil.Error:
            continue
    return told


def places() -> set[Path]:
    """Names where a program that heeds no HOME or TMPDIR would leave something."""
    home = Path.home()
    folders = (home, home / ".cache", home / ".config", home / "dfdet")
    names = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return names | {path for path in [Path(tempfile.gettempdir()) / "ray"] if path.exists()}
