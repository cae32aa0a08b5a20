"""Real gloo groups of processes for tests."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_group(world: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120) -> list[Any]:
    """Runs ``function(rank, world, *args)`` in ``world`` processes; gives what each returned.

    ``function`` must be importable from a module. Raises with the first traceback if one fails.
    """
    context = mp.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_member, args=(rank, world, port, queue, function, args))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(_next(queue, timeout_s) for _ in range(world))
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(world)]


def _next(queue: Any, timeout_s: float) -> tuple[int, Any]:
    rank, value, failure = queue.get(timeout=timeout_s)
    if failure:
        raise AssertionError(f"rank {rank} failed:\n{failure}")
    return rank, value


def _member(rank: int, world: int, port: int, queue: Any, function: Callable[..., Any], args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world)
        queue.put((rank, function(rank, world, *args), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    finally:
        queue.close()
        queue.join_thread()
        if dist.is_initialized():
            dist.destroy_process_group()
