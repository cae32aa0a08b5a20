"""Gloo groups of processes that work on call, so that several groups can be timed in turn."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ANSWER_S = 600.0
"""Longest wait for an answer, the first of which includes imports and models (seconds)."""
Work = Callable[..., Any]


class Group:
    """``world`` spawned processes with one thread each, in one gloo group.

    ``setup(rank, world, *args)``, importable from a module, gives each its work: a function that
    every :meth:`call` calls in all of them at once.
    """

    def __init__(self, world: int, setup: Callable[..., Work], *args: Any) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="dfdet-group-")
        store = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_member, args=(theirs, store, rank, world, setup, args), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, *args: Any) -> list[Any]:
        """What the work returned in each process, by rank.

        Raises:
            RuntimeError: It failed in one, whose traceback the message has, or did not answer.
        """
        for pipe in self._pipes:
            pipe.send(args)
        return [self._answer(rank, pipe) for rank, pipe in enumerate(self._pipes)]

    @staticmethod
    def _answer(rank: int, pipe: Connection) -> Any:
        if not pipe.poll(ANSWER_S):
            raise RuntimeError(f"rank {rank} did not answer within {ANSWER_S:.0f} s")
        try:
            value, failure = pipe.recv()
        except EOFError:
            raise RuntimeError(f"rank {rank} died") from None
        if failure:
            raise RuntimeError(f"rank {rank} failed:\n{failure}")
        return value

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _member(
    pipe: Connection, store: str, rank: int, world: int, setup: Callable[..., Work], args: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        work = setup(rank, world, *args)
        while True:
            pipe.send((work(*pipe.recv()), None))
    except EOFError:
        pass  # the caller is done
    except Exception:  # noqa: BLE001 - the caller raises it
        pipe.send((None, traceback.format_exc()))
    finally:
        dist.destroy_process_group()
