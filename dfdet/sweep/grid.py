"""A grid of settings, each tried once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial


class Grid(BaseSampler):
    """All combinations in an order of their own, each once.

    Unlike Optuna's it goes by the values that trials had, so that a widened grid goes on where the old
    one ended, and published points are not repeated.

    Args:
        grid: Values of each dimension.
        seed: Of the sweep.
    """

    def __init__(self, grid: dict[str, list[Any]], seed: int) -> None:
        self._names = list(grid)
        self._points = list(itertools.product(*grid.values()))
        random.Random(seed).shuffle(self._points)  # noqa: S311 - an order, no secret

    def remaining(self, trials: Sequence[FrozenTrial]) -> list[tuple[Any, ...]]:
        """Combinations that no trial has, in order; queued trials count by what they will be."""
        taken = {self._point(trial) for trial in trials}
        return [point for point in self._points if point not in taken]

    def _point(self, trial: FrozenTrial) -> tuple[Any, ...]:
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return tuple(params.get(name) for name in self._names)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: each value is looked up alone."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, as there is no space for it."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The dimension's value in the first combination that fits what the trial has already."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        now = study.get_trials(deepcopy=False)[trial.number].params  # of a kill within an earlier try too
        for point in self.remaining(others):
            values = dict(zip(self._names, point, strict=True))
            if all(values.get(name) == value for name, value in now.items()):
                return values[param_name]
        raise AssertionError("the grid is exhausted")
