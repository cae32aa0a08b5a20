"""Asks nodes: a task pinned to each, which waits for no resources, with an end to every wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.checks.nodes import Node

Call = tuple[Node, tuple[Any, ...]]
"""A node and the arguments of its call."""
Probe = Callable[..., dict[str, Any]]


class Asking:
    """Calls probes on nodes; one that has not answered is not asked again.

    Args:
        timeout_s: Wait for an answer (seconds).
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.silent: dict[str, str] = {}
        """Why nodes did not answer, by their name."""

    def ask(self, probe: Probe, calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
        """Answers by node name; of nodes without one :attr:`silent` says why."""
        answers: dict[str, dict[str, Any]] = {}
        for (node, _), answer in zip(calls, self.ask_all(probe, calls), strict=True):
            if answer is not None:
                answers[node.name] = answer
        return answers

    def ask_all(self, probe: Probe, calls: Sequence[Call]) -> list[dict[str, Any] | None]:
        """An answer to each call, None where there is none."""
        task = _task(probe)
        refs = [None if node.name in self.silent else _call(task, node, given) for node, given in calls]
        asked = [ref for ref in refs if ref is not None]
        ready = set(ray.wait(asked, num_returns=len(asked), timeout=self.timeout_s)[0]) if asked else set()
        return [
            self._answer(node, ref, ref in ready, probe) for (node, _), ref in zip(calls, refs, strict=True)
        ]

    def _answer(self, node: Node, ref: Any, ready: bool, probe: Probe) -> dict[str, Any] | None:
        if ref is None:
            return None
        if not ready:
            ray.cancel(ref, force=True)
            self.silent[node.name] = f"no answer within {self.timeout_s:g} s ({probe.__name__})"
            return None
        try:
            answer: dict[str, Any] = ray.get(ref)
        except Exception as error:  # noqa: BLE001 - a process that crashed, a node that died: its answer
            words = " ".join(str(error).split())[-200:]
            self.silent[node.name] = f"{probe.__name__}: {type(error).__name__}: {words}"
            return None
        return answer

    def ask_in_turn(self, probe: Probe, nodes: Sequence[Node]) -> dict[str, tuple[float, Any, float]]:
        """Answers of nodes that are asked one after the other, between the times of question and answer."""
        told = {}
        for node in nodes:
            asked = time.time()
            answer = self.ask(probe, [(node, ())])
            if node.name in answer:
                told[node.name] = (asked, answer[node.name], time.time())
        return told


def _task(probe: Probe) -> Any:
    # by value: a node may lack this very module
    ray.cloudpickle.register_pickle_by_value(sys.modules[probe.__module__])
    return ray.remote(num_cpus=0, max_retries=0)(probe)


def _call(task: Any, node: Node, arguments: tuple[Any, ...]) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return task.options(scheduling_strategy=pinned).remote(*arguments)
