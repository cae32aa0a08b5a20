"""How a study proposes settings, and whether it can go on with the trials that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.sweep.grid import Grid
from dfdet.sweep.samplers import build_sampler
from dfdet.sweep.space.space import Space


@dataclass(frozen=True)
class Search:
    """What is searched, and how."""

    base: Config
    """What settings change."""
    space: Space
    sampler: str = "tpe"
    """One of ``SAMPLERS``."""
    seed: int = 0
    """Of the sampler."""
    pruner: BasePruner | None = None
    """Stops settings early; None: nobody does."""

    def proposer(self, number: int) -> BaseSampler:
        """The sampler of one trial."""
        return build_sampler(self.sampler, self.space, self.seed, number)

    def exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether there is nothing new to propose: the end of a grid."""
        sampler = self.proposer(len(trials))
        return isinstance(sampler, Grid) and not sampler.remaining(trials)

    def check(self, trials: Sequence[FrozenTrial]) -> None:
        """Refuses a space that is not the one of these trials, but for what may change.

        Raises:
            ConfigError: The first dimension that differs too much for Optuna, or for the sampler.
        """
        known: dict[str, BaseDistribution] = {}
        for trial in trials:
            known = trial.distributions | known
        for path, distribution in self.space.distributions().items():
            if path in known:
                _check_compatible(path, known[path], distribution)
            # these model only dimensions that all trials drew from one same range, the others are random
            if self.sampler in ("cmaes", "gp", "nsga2") and known and known.get(path) != distribution:
                raise ConfigError(
                    f"--sampler {self.sampler}: {path} was not searched over"
                    f" {self.space.dimensions[path].describe()} so far, and it cannot use trials of another"
                    " space; take --sampler tpe, or the old space"
                )


def _check_compatible(path: str, old: BaseDistribution, new: BaseDistribution) -> None:
    try:
        check_distribution_compatibility(old, new)
    except ValueError:
        raise ConfigError(
            f"--space: {path} was searched as {old}, now {new}; within a sweep ranges may change, but not"
            " choices, log or integer: take the old ones, or start a new sweep under another --run.name"
        ) from None
