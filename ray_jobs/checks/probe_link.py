"""Two ranks on two nodes add numbers up. Runs there, by value: the standard library alone up here."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

MESSAGE_BYTES = 16 * 2**20
ROUNDS = 3


def reduce(rank: int, address: str, port: int, backend: str, timeout_s: float) -> dict[str, Any]:
    """Meets the other rank as training workers do, and sums a message with it.

    Args:
        rank: 0 or 1.
        address: Of the first rank's node, where it listens on ``port``.
        port: As said.
        backend: ``nccl`` (on the node's first GPU) or ``gloo``.
        timeout_s: Wait for the other rank, in each step (seconds).

    Returns:
        ``error`` (None where all is well) and ``seconds`` of the fastest sum of 16 MiB.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=timeout_s),
        )
        seconds = [_timed(dist, torch, device) for _ in range(ROUNDS)]
    except Exception as error:  # noqa: BLE001 - torch raises what its backends do; all of it is the answer
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "seconds": None}
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return {"error": None, "seconds": min(seconds)}


def _timed(dist: Any, torch: Any, device: Any) -> float:
    message = torch.ones(MESSAGE_BYTES // 4, device=device)
    begun = time.perf_counter()
    dist.all_reduce(message)
    total = float(message.sum())  # waits for the device too
    seconds = time.perf_counter() - begun
    if total != 2 * MESSAGE_BYTES // 4:
        raise ArithmeticError(f"the sum of two ranks is {total}")
    return seconds
