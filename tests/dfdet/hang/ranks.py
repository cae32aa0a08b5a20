"""Ranks of real gloo groups under watchdogs, forked from one process that has imported torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from dfdet.hang.progress import PROGRESS
from dfdet.hang.verdict import Hang, line
from dfdet.hang.watchdog import Watchdog

TIMEOUT_S = 1.0


def exit_codes(
    work: Callable[[int], None], folder: Path, enders: Sequence[int] = (0, 1), world: int = 2
) -> list[int | None]:
    """Exit codes of ranks that pass two steps and then do their work, a collective, under a watchdog.

    Args:
        work: What they do, given their rank; importable.
        folder: For ``stacks`` and ``told``.
        enders: Ranks that end by themselves; the others are killed then.
        world: Number of ranks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(n, world, port, work, folder)) for n in range(world)]
    for rank in ranks:
        rank.start()
    try:
        for number in enders:
            ranks[number].join(150)
        return [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(rank: int, world: int, port: int, work: Callable[[int], None], folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)

    def tell(hang: Hang) -> None:
        with (folder / "told").open("a", encoding="utf-8") as file:
            file.write(line(hang, "STACKS") + "\n")

    with Watchdog(TIMEOUT_S, rank, world, folder / "stacks", tell):
        for step in (1, 2):
            PROGRESS.mark("data wait", step)
            PROGRESS.mark("forward and backward")
        work(rank)
    # the first one has the store that the others look at
    while rank == 0 and world > 1 and not all((folder / f"through-{n}").exists() for n in range(1, world)):
        time.sleep(0.02)
    (folder / f"through-{rank}").touch()


def meet() -> None:
    dist.all_reduce(torch.zeros(1))


def sleeping_step() -> None:
    time.sleep(1000)


def second_sleeps(rank: int) -> None:
    sleeping_step() if rank == 1 else meet()


def second_is_stopped(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    meet()


def second_holds_its_interpreter(rank: int) -> None:
    if rank == 1:
        ctypes.PyDLL(None).sleep(1000)
    meet()


def second_is_slow(rank: int) -> None:
    for _ in range(40 if rank == 1 else 0):
        PROGRESS.alive()
        time.sleep(TIMEOUT_S / 10)
    meet()


def first_sleeps_when_second_is_through(rank: int) -> None:
    if rank == 0:
        sleeping_step()


def first_is_stopped_with_the_store(rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    meet()
