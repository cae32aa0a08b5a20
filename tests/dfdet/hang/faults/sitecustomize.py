"""A fault from outside of the product, for processes with this folder in ``PYTHONPATH``.

``DFDET_FAULT=RANK:STEP:HOW[:FILE]``: at its STEP-th step the rank falls asleep (``sleep``), is stopped
(``stop``), or its threads that read data do (``read``); with a file that is made then, once only.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def fall_asleep() -> None:
    time.sleep(100_000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


class Fault(importlib.abc.MetaPathFinder):
    """Wraps the engine's step when its module is imported."""

    def __init__(self, text: str) -> None:
        rank, step, self.how, *once = text.split(":")
        self.rank, self.step = int(rank), int(step)
        self.once = Path(once[0]) if once else None
        self.count = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "dfdet.training.engine":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            inner = module.TrainEngine.step

            def step(engine: Any, *arguments: Any) -> Any:
                self.strike()
                return inner(engine, *arguments)

            module.TrainEngine.step = step

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def strike(self) -> None:
        import torch.distributed as dist

        self.count += 1
        if self.count != self.step or dist.get_rank() != self.rank:
            return
        if self.once is not None:
            if self.once.exists():
                return
            self.once.touch()
        {"sleep": fall_asleep, "stop": stop, "read": self.stop_reading}[self.how]()

    def stop_reading(self) -> None:
        from dfdet.data.reader import Reader

        Reader.read = lambda *arguments: fall_asleep()  # type: ignore[method-assign]


if text := os.environ.get("DFDET_FAULT"):
    sys.meta_path.insert(0, Fault(text))
