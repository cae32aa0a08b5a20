"""What a sweep searches for: a metric of a run, and whether more of it is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dfdet.config import Config, named_sets
from dfdet.errors import ConfigError

Direction = Literal["maximize", "minimize"]

ENDINGS: dict[str, Direction] = {"max": "maximize", "min": "minimize"}
LOWER_IS_BETTER = re.compile(r"/eer$|(?<!_per)_s$|_mib$|_share$")
"""Metrics that are minimised unless told otherwise: error rates, times, memory."""


@dataclass(frozen=True)
class Objective:
    """A metric of ``result.json``, by the name that it has in every record."""

    metric: str
    """As ``val/demo/video/auroc`` or ``perf/step_s``."""
    direction: Direction = "maximize"

    @classmethod
    def parse(cls, text: str) -> Objective:
        """``METRIC``, ``METRIC:min`` or ``METRIC:max``; without an ending what is usual for the metric.

        Raises:
            ConfigError: An unknown ending, a metric that is none of a run's, or one of a test set.
        """
        metric, colon, ending = text.partition(":")
        usual: Direction = "minimize" if LOWER_IS_BETTER.search(metric) else "maximize"
        if colon and ending not in ENDINGS:
            raise ConfigError(f"--objective {text}: ends with :{ending}; end it with :min, :max or nothing")
        if metric.startswith("test/"):
            raise ConfigError(
                f"--objective {text}: a setting chosen on a test set makes its result worthless;"
                " give a metric of a validation set, as val/NAME/video/auroc"
            )
        if not re.fullmatch(r"val/[^/]+/(frame|video)/[^:]+|perf/[^/:]+", metric):
            raise ConfigError(
                f"--objective {text}: no metric of a run; give val/NAME/video/METRIC,"
                " val/NAME/frame/METRIC or perf/NAME"
            )
        return cls(metric, ENDINGS[ending] if colon else usual)

    def value(self, result: Mapping[str, Any]) -> float | None:
        """The metric in a run's result; None where it is not there or was not defined."""
        found = {**result.get("metrics", {}), **result.get("speed", {})}.get(self.metric)
        return None if found is None else float(found)

    def __str__(self) -> str:
        return f"{self.metric}:{self.direction[:3]}"


def parse_objectives(texts: Sequence[str], base: Config) -> list[Objective]:
    """The objectives of a sweep; of no text, the video AUROC on the first validation set.

    Raises:
        ConfigError: As :meth:`Objective.parse`; one given twice; a set that is no validation set.
    """
    sets = list(named_sets(base.data.val))
    if not texts and not sets:
        raise ConfigError("data.val is empty: a sweep compares settings on a validation set; give one")
    objectives = [Objective.parse(text) for text in texts or [f"val/{sets[0]}/video/auroc"]]
    for number, objective in enumerate(objectives):
        split, name, *_ = objective.metric.split("/")
        if split == "val" and name not in sets:
            known = ", ".join(sets) or "none"
            raise ConfigError(f"--objective {objective}: {name} is no validation set; data.val has: {known}")
        if objective.metric in [other.metric for other in objectives[:number]]:
            raise ConfigError(f"--objective {objective}: given twice; leave one out")
    return objectives
