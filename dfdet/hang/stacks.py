"""What the threads of this process are doing: for its watchdog, and for whoever reads what it leaves."""

from __future__ import annotations

import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

LIBRARY = sysconfig.get_path("stdlib")
HELPERS = ("dfdet-", "checkpoints")
"""Threads that training waits for, by the beginning of their names."""
OWN = "hang-"
"""How the names of a watchdog's threads begin."""
FOR_OTHERS = ("/torch/distributed/", "/torch/cuda/", "/ray/")
"""Innermost code of a thread that waits for other ranks, or for a device that does."""


class Doing(NamedTuple):
    """What a thread does."""

    place: str
    """``file.py:12 function``, of the innermost code outside of Python's own library."""
    waits: bool
    """Whether it waits for other ranks."""


def doing(thread: int) -> Doing:
    """What a thread does; where it waits for a thread that works for it, what that one does.

    Args:
        thread: Its ``ident``.
    """
    frames = sys._current_frames()
    frame = frames.get(thread)
    if frame is None:
        return Doing("", False)
    waits = any(part in frame.f_code.co_filename for part in FOR_OTHERS)
    if not waits and _in_library(frame):
        for helper in _helpers():
            if helper.ident in frames and _works(frames[helper.ident]):
                return Doing(f"{_place(frames[helper.ident])} (thread {helper.name})", False)
    return Doing(_place(frame), waits)


def dump(path: Path, heading: str, thread: int) -> None:
    """Adds the stacks of all threads to a file, each from the outermost call to the innermost.

    Args:
        path: The file; its folder is made.
        heading: Goes before them.
        thread: ``ident`` of the one to begin with.

    Raises:
        OSError: It cannot be written.
    """
    names: dict[int | None, str] = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"{heading}\n"]
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != thread):
        name = names.get(ident, str(ident))
        if not name.startswith(OWN):
            parts.append(f"\nthread {name}:\n{''.join(traceback.format_stack(frame))}")
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(parts) + "\n")


def _helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(HELPERS)]


def _works(frame: FrameType) -> bool:
    """Whether a thread has work, rather than a pool's that waits for some."""
    return not frame.f_code.co_filename.endswith("concurrent/futures/thread.py")


def _place(frame: FrameType) -> str:
    shown = next((outer for outer in _outwards(frame) if not _in_library(outer)), frame)
    code = shown.f_code
    return f"{Path(code.co_filename).name}:{shown.f_lineno} {code.co_name}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _in_library(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return (name.startswith(LIBRARY) and "site-packages" not in name) or name.startswith("<frozen")
