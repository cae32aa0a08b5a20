"""Studies of small sweeps for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfdet.config import Config
from dfdet.sweep.objective import Objective
from dfdet.sweep.samplers import build_pruner
from dfdet.sweep.search import Search
from dfdet.sweep.space.space import Dimension, Space
from dfdet.sweep.study import Ask, Done, SweepStudy

BASE = Config().replace({"optim.epochs": 10})
SPACE = Space(
    dimensions={
        "loss.uniformity": Dimension(low=0.0, high=1.0),
        "model.head": Dimension(choices=("linear", "cosine")),
        "model.margin": Dimension(low=0.0, high=0.5, when={"model.head": ("cosine",)}),
    }
)
AUROC = Objective("val/demo/video/auroc")
SPEED = Objective("perf/step_s", "minimize")


def open_sweep(
    folder: Path,
    url: str | None = None,
    *,
    base: Config = BASE,
    objectives: tuple[Objective, ...] = (AUROC,),
    options: dict[str, Any] | None = None,
    **search: Any,
) -> SweepStudy:
    """Opens the search of a sweep as one more driver."""
    return SweepStudy.open(
        folder,
        url,
        name="search",
        objectives=objectives,
        header={"base": base.model_dump(mode="json"), "options": options or {"seeds": 1}},
        search=Search(base, **({"space": SPACE, "pruner": build_pruner("asha", 10)} | search)),
        patience_s=0.0,
    )


def finish(study: SweepStudy, limit: int, value: float = 0.5) -> list[Ask]:
    """Completes all that there is to train; gives what was asked."""
    asks = []
    while isinstance(ask := study.next(limit), Ask):
        study.complete(ask.number, [value])
        asks.append(ask)
    assert ask == Done()
    return asks
