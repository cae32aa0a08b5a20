"""Ends a server's replicas when its process is gone, however it went: Ray Serve keeps them for ever.

``ray job stop`` gives a process 3 s, and a kill or a lost head gives it none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import OwnerDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def guard(apps: Sequence[str]) -> None:
    """Has these applications deleted as soon as this process has ended."""
    actor: Any = Guard
    node = ray.get_runtime_context().get_node_id()
    handle = actor.options(
        name=f"{apps[0]}-guard",
        namespace="dfdet",
        lifetime="detached",
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    ).remote()
    handle.watch.remote([handle.lifetime.remote()], list(apps))


@ray.remote(num_cpus=0)
class Guard:
    """Outlives the process that starts it, beside which it runs."""

    async def lifetime(self) -> None:
        """Never returns: what it would give belongs to the caller, and is lost with its process."""
        await asyncio.Event().wait()

    async def watch(self, lifetime: Sequence[Any], apps: Sequence[str]) -> None:
        """Waits for the caller's end, deletes the applications, ends this actor."""
        try:
            await lifetime[0]
        except OwnerDiedError:
            for each in apps:
                await asyncio.to_thread(serve.delete, each)
        finally:
            os._exit(0)  # an actor's own exit would wait for `lifetime`
