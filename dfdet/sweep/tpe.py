"""TPE for spaces with conditions that may be widened while they are searched."""

from __future__ import annotations

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState


class GroupedTPE(BaseSampler):
    """TPE that models together the dimensions that occur together, over their present ranges.

    Optuna's own ``group=True`` (5.0) keeps drawing from the ranges of the oldest trials after a space
    was widened, and is experimental. Running trials count as poor ones (constant liar).

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.

    Args:
        distributions: All dimensions.
        seed: Of this trial.
        startup: Ended trials before which it draws at random (settings).
    """

    def __init__(self, distributions: dict[str, BaseDistribution], seed: int, startup: int) -> None:
        self._distributions = {
            name: distribution for name, distribution in distributions.items() if not distribution.single()
        }
        self._tpe = TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All dimensions."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of all dimensions, those included that will not exist under the others."""
        values: dict[str, Any] = {}
        for names in self._groups(study):
            values |= self._tpe.sample_relative(study, trial, {name: search_space[name] for name in names})
        return values

    def _groups(self, study: Study) -> list[list[str]]:
        """Names of the dimensions that the same finished trials have."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in self._distributions:
            having = tuple(trial.number for trial in ended if name in trial.params)
            groups.setdefault(having, []).append(name)
        return list(groups.values())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of one dimension, as before enough settings have ended."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)
