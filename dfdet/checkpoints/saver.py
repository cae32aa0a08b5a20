"""Checkpoints written beside training: the loop hands over tensors and goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.checkpoint import Parts, step_name
from dfdet.context import Context, agree
from dfdet.runs.patience import patiently

logger = logging.getLogger(__name__)

IN_HAND = 2
"""Checkpoints in memory at most: one that is written, one that waits (checkpoints)."""


class PeerFailedError(Exception):
    """Another rank has failed and tells why: this one leaves with it, without a word."""


@dataclass(frozen=True)
class _Job:
    parts: Parts
    best: tuple[str, float] | None


class Saver:
    """Writes checkpoints on a thread, one after another, in the order they were given.

    A kill at any point leaves the earlier ones whole. What the storage refuses is tried again for
    ``patience_s`` while training goes on; then :meth:`check` and :meth:`wait` raise.
    A folder that has vanished is waited for like a full disk, never made anew: the mount point of a
    share that is away would take the run's checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_best: int,
        patience_s: float,
        publish: Callable[[], None] | None = None,
    ) -> None:
        """For the one process that writes.

        Args:
            folder: The run's ``checkpoints`` folder, which exists.
            keep_last: Newest checkpoints kept (checkpoints).
            keep_best: Best checkpoints kept, by their metric (checkpoints).
            patience_s: How long a refused write is tried again (seconds).
            publish: Brings the folder as it is to where the run lies, where that is elsewhere; refused
                with ``OSError``.
        """
        self.folder = folder
        self._publish = publish or (lambda: None)
        self.keep_last, self.keep_best = keep_last, keep_best
        self.patience_s = patience_s
        self.write_s = 0.0
        """Time that the writes so far have taken, beside training (seconds)."""
        self.blocked_s = 0.0
        """Time that training has waited for them (seconds)."""
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def failed(self) -> bool:
        """Whether a write has failed for good."""
        return self._failure is not None

    def save(
        self,
        *,
        best: tuple[str, float] | None = None,
        metric: float | None = None,
        **parts: Unpack[Parts],
    ) -> Path:
        """Hands a checkpoint over; gives the path that it will have.

        Returns at once, unless two are in hand already: then when the first of them is written. After
        a write has failed for good nothing more is written: a rank must not leave alone, so this
        does not raise.

        Args:
            best: Name and value of the metric, where this is the best checkpoint so far.
            metric: Value of the metric that ranks checkpoints, where it was evaluated at this step.
            **parts: See :class:`.checkpoint.Parts`; the tensors belong to the saver from now on.
        """
        name, value = best or (None, metric)
        parts["state"] = parts["state"].model_copy(update={"metric": value, "metric_name": name})
        with self._changed:
            self._wait_until(IN_HAND - 1)
            if not self.failed:
                self._jobs.append(_Job(parts, best))
            if self._jobs and self._thread is None:
                # It ends when it has nothing to do: an idle one would keep the process from exiting,
                # and a daemon may be killed inside of torch, which aborts the process.
                self._thread = threading.Thread(target=self._write_all, name="checkpoints")
                self._thread.start()
        return self.folder / step_name(parts["state"].step)

    def check(self) -> None:
        """Raises what a write has failed with; costs nothing.

        Raises:
            TrainingError: The storage was full or away for longer than the patience.
        """
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Waits until all is written, and what is too many removed; raises as :meth:`check` does."""
        with self._changed:
            self._wait_until(0)
        self.check()
        self._prune()  # what a kill after the last checkpoint has left
        patiently(self._publish, f"checkpoints {self.folder}", self.patience_s, self._hurry)

    def close(self) -> None:
        """Writes what is in hand, without patience, and ends the thread; raises nothing."""
        self._hurry.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _wait_until(self, left: int) -> None:
        began = time.monotonic()
        while len(self._jobs) > left and not self.failed:
            self._changed.wait()
        self.blocked_s += time.monotonic() - began

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs[0]
            began = time.monotonic()
            try:
                self._write(job)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that trains
                logger.error("%s", error)
                self._failure = error
            self.write_s += time.monotonic() - began
            with self._changed:
                self._jobs.popleft()
                if self.failed:
                    self._jobs.clear()
                self._changed.notify_all()

    def _write(self, job: _Job) -> None:
        """Each part is tried by itself, so that a later refusal repeats nothing."""
        folder = self.folder
        path = folder / step_name(job.parts["state"].step)
        what = f"checkpoint {path}"
        hurry = (self.patience_s, self._hurry)
        patiently(lambda: checkpoint.write(folder, **job.parts), what, *hurry)
        patiently(lambda: checkpoint.mark_last(folder, path), what, *hurry)
        if job.best:
            name, value = job.best
            patiently(lambda: checkpoint.mark_best(folder, path, name, value), what, *hurry)
        self._prune()
        patiently(self._publish, what, *hurry)

    def _prune(self) -> None:
        patiently(
            lambda: checkpoint.prune(self.folder, self.keep_last, self.keep_best),
            f"checkpoints {self.folder}",
            self.patience_s,
            self._hurry,
        )


def wait_together(context: Context, saver: Saver | None) -> None:
    """Waits until the first rank's checkpoints are on the disk; a collective.

    Raises:
        TrainingError: On the first rank: they could not be written.
        PeerFailedError: On the others, then.
    """
    try:
        if saver is not None:
            saver.wait()
        failed = False
    except Exception:  # noqa: BLE001 - raised again below, by all ranks
        failed = True
    leave_together(agree(context, failed)[0], saver)


def leave_together(failed: bool, saver: Saver | None) -> None:
    """Raises as :func:`wait_together` does where ``failed``, on which all ranks have agreed."""
    if failed:
        if saver is not None:
            saver.check()
        raise PeerFailedError("the first worker could not write a checkpoint; its error tells why")
