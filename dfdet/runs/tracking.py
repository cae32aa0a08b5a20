"""Where metrics go besides ``metrics.jsonl``: trackers in threads of their own, and TensorBoard's files.

A tracker is an extra: whatever it does (a full disk, a server that is away), the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

WAITING_RECORDS = 10_000
"""Records that wait for a slow tracker before new ones are dropped: hours of a run, in megabytes."""
CLOSE_SECONDS = 60.0
"""How long the end of a run waits for what is still to be sent."""
NO_CURVES = frozenset({"step", "steps", "train/batch_crc32"})
"""Fields of a record that are no metrics."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")
"""Environment variables whose values are cut out of messages."""


class Tracker(Protocol):
    """Takes the records of a run."""

    def record(self, metrics: dict[str, Any]) -> None:
        """Takes a record: ``step``, ``epoch`` and metrics by name; a value may be None."""

    def close(self) -> None:
        """Sends what is left."""


class Background:
    """A tracker in a thread of its own, which neither slows a run nor ends it.

    It is opened there at the first record. A record that cannot be sent is dropped: the first is
    logged, and the next one is tried again.

    Args:
        name: For the log.
        open_tracker: Makes the tracker; called in the thread, again after it failed.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name = name
        self._open = open_tracker
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING_RECORDS)
        self._thread: threading.Thread | None = None
        self._warned = False

    def record(self, metrics: dict[str, Any]) -> None:
        """Hands a record over, at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"track-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._records.put_nowait(dict(metrics))
        except queue.Full:
            self._warn(f"{WAITING_RECORDS:,} records wait already")

    def close(self) -> None:
        """Sends what is left, for a minute at most; a later record begins anew."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"not done after {CLOSE_SECONDS:.0f} s")
        self._thread = None

    def _run(self) -> None:
        tracker: Tracker | None = None
        while (metrics := self._records.get()) is not None:
            try:
                tracker = tracker or self._open()
                tracker.record(metrics)
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
                self._warn(error)
        try:
            if tracker:
                tracker.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._warn(error)

    def _warn(self, cause: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: %s; the run goes on, records that it cannot take are dropped", self._name, brief(cause)
            )


def brief(cause: object) -> str:
    """The first line of an error without keys, passwords and users."""
    text = (str(cause).strip().splitlines() or [""])[0][:300]
    text = re.sub(r"//[^/@\s]*@", "//", text)
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "...")
    return f"{type(cause).__name__}: {text}" if isinstance(cause, BaseException) else text


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a record that have a value, without what makes no curve."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and name not in NO_CURVES
    }


class TensorBoard(Background):
    """Writes a run's records as TensorBoard's event files.

    Args:
        folder: Where; a process that resumes the run adds a file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("TensorBoard", lambda: EventFile(folder))


class EventFile:
    """One of TensorBoard's event files: length-prefixed protocol buffers with checksums.

    Written by hand, as the format is 40 lines and its libraries import torch or TensorFlow, write from
    a queue that blocks for ever once the disk was full, and lose what is not flushed at a kill.

    Args:
        folder: Where; made if need be.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=0)
        self._end = 0
        self._begun = False

    def record(self, metrics: dict[str, Any]) -> None:
        """Adds an event with all numbers of a record.

        Raises:
            OSError: The disk is full or away; the file ends with the last whole event.
        """
        step = int(metrics["step"])
        if not self._begun:
            # A session's start hides what an earlier file holds from this step on, written before a resume.
            self._append(_event(0, _bytes(3, b"brain.Event:2")))
            self._append(_event(step, _bytes(7, _varint(1, 1))))
            self._begun = True
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in numbers(metrics).items()
        )
        self._append(_event(step, _bytes(5, values)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        frame = length + _masked_crc(length) + event + _masked_crc(event)
        try:
            if self._file.write(frame) != len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(frame)


# ---- the wire format of protocol buffers, as far as an event needs it


def _event(step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + _varint(2, step) + content


def _varint(field: int, number: int) -> bytes:
    return bytes([field << 3]) + _plain_varint(number)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _plain_varint(len(content)) + content


def _plain_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C rotated and offset, so that one over data with checksums differs."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
