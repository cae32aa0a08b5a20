"""How a job that works in its own process ends: errors as a line and a code, SIGTERM as an interrupt."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dfdet.errors import DfdetError
from shards.names import printable


def exit_code(job: Callable[[], int], stopped: str) -> int:
    """What ``job`` gives; an error is told in a line first.

    Args:
        stopped: Told after Ctrl-C: what is left, and how to go on.
    """
    try:
        return job()
    except DfdetError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


def heed_sigterm() -> None:
    """From now on SIGTERM ends this process as an interrupt does, with clean-up on the way out."""
    signal.signal(signal.SIGTERM, _exit)


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """The same for a while."""
    former = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
