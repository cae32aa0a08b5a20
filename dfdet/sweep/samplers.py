"""Who proposes settings and who stops them early: Optuna's samplers and pruners, made for one use.

A sampler is made anew for every trial, its randomness from the sweep's seed and the trial's number:
whatever process asks, and however often the sweep was resumed, no random draw is used twice.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
from optuna import Study
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from dfdet.errors import ConfigError
from dfdet.sweep.grid import Grid
from dfdet.sweep.space.space import Space
from dfdet.sweep.tpe import GroupedTPE

SAMPLERS = ("tpe", "tpe-joint", "random", "grid", "cmaes", "gp", "nsga2")
PRUNERS = ("asha", "median", "none")
MULTI_OBJECTIVE = ("tpe", "nsga2", "tpe-joint", "random", "grid")

STARTUP_TRIALS = 10
"""Random settings before TPE or a Gaussian process proposes (settings; published ones count)."""
POPULATION = 16
"""NSGA-II's generation; Optuna's 50 would leave small sweeps random (settings)."""
LARGEST_GRID = 100_000


def build_sampler(name: str, space: Space, seed: int, number: int = 0) -> BaseSampler:
    """The sampler of one trial.

    Args:
        name: One of ``SAMPLERS``.
        space: What is searched.
        seed: Of the sweep.
        number: Of the trial that it is for.
    """
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "tpe":
        # one dimension at a time: benchmarks/sweep_simulated.py has it ahead of joint modelling; a
        # dimension is learned from the trials that have it, over its present range
        return TPESampler(seed=state, n_startup_trials=STARTUP_TRIALS, multivariate=False, constant_liar=True)
    if name == "tpe-joint":
        return GroupedTPE(space.distributions(), state, STARTUP_TRIALS)
    if name == "grid":
        return Grid(space.grid(), seed)
    if name == "cmaes":
        return CmaEsSampler(seed=state, n_startup_trials=STARTUP_TRIALS)
    if name == "gp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GPSampler(seed=state, n_startup_trials=STARTUP_TRIALS)
    if name == "nsga2":
        return NSGAIISampler(seed=state, population_size=POPULATION)
    assert name == "random", name
    return RandomSampler(seed=state)


def check_sampler(name: str, space: Space, objectives: int, pruner: str) -> None:
    """Refuses what a sampler or pruner cannot do.

    Args:
        name: Of the sampler.
        space: What is searched.
        objectives: How many metrics are searched for.
        pruner: Its name.

    Raises:
        ConfigError: Value, cause and remedy.
    """
    for flag, value, known in (("sampler", name, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise ConfigError(f"--{flag} {value}: no such {flag}; give one of {', '.join(known)}")
    if objectives > 1 and pruner != "none":
        raise ConfigError(
            f"--pruner {pruner}: stops settings by one objective, and there are {objectives};"
            " give --pruner none, or one --objective"
        )
    if objectives > 1 and name not in MULTI_OBJECTIVE:
        raise ConfigError(
            f"--sampler {name}: searches one objective, and there are {objectives}; give --sampler"
            f" {' or '.join(MULTI_OBJECTIVE[:2])}, or one --objective"
        )
    if problem := _space_problem(name, space):
        raise ConfigError(f"--sampler {name}: {problem}")


def _space_problem(name: str, space: Space) -> str | None:
    if name not in ("grid", "cmaes", "gp"):
        return None
    for path, dimension in space.dimensions.items():
        if dimension.when:
            return (
                f"{path} exists only under some values of {', '.join(dimension.when)}, and it takes no"
                " conditions; give --sampler tpe, or a --space that fixes them"
            )
    return {"grid": _grid_problem, "cmaes": _cmaes_problem, "gp": lambda space: None}[name](space)


def _grid_problem(space: Space) -> str | None:
    for path, dimension in space.dimensions.items():
        if dimension.count is None:
            return (
                f"{path} ({dimension.describe()}) has no finite number of values; give it choices or a"
                " step in --space, or take --sampler tpe"
            )
    if (space.size or 0) > LARGEST_GRID:
        return (
            f"the space has {space.size:,} settings, more than {LARGEST_GRID:,}; narrow it by --space, or"
            " take --sampler tpe"
        )
    return None


def _cmaes_problem(space: Space) -> str | None:
    for path, distribution in space.distributions().items():
        if isinstance(distribution, CategoricalDistribution):
            return f"{path} has choices, and it takes numbers only; give it a range, or take --sampler tpe"
    if len(space.dimensions) < 2:
        return "needs two dimensions or more, and there is one; take --sampler gp or tpe"
    if importlib.util.find_spec("cmaes") is None:
        return "its package is missing; pip install cmaes, or take --sampler tpe"
    return None


def build_pruner(name: str, epochs: int, reduction: int = 3, min_epochs: int = 1) -> BasePruner:
    """The pruner of a sweep; steps are epochs, counted from 1.

    Args:
        name: ``asha``, ``median`` or ``none``.
        epochs: Full budget of a setting; one that has had it is never stopped (epochs).
        reduction: ASHA lets the best ``1 / reduction`` of a rung go on (factor).
        min_epochs: First epoch at which a setting may be stopped (epochs).

    Raises:
        ConfigError: No setting could ever be stopped.
    """
    if name == "none":
        return NopPruner()
    if min_epochs >= epochs:
        raise ConfigError(
            f"--min-epochs {min_epochs}: no setting can be stopped before its last epoch, {epochs}; give"
            " fewer, or more --optim.epochs, or --pruner none"
        )
    if name == "median":
        return BeforeTheEnd(MedianPruner(n_startup_trials=5, n_warmup_steps=min_epochs), epochs)
    assert name == "asha", name
    return BeforeTheEnd(SuccessiveHalvingPruner(min_epochs, reduction), epochs)


class BeforeTheEnd(BasePruner):
    """A pruner that leaves alone who has had the full budget: its result costs nothing more.

    The asynchronous successive halving it serves is that of Li et al., A System for Massively Parallel
    Hyperparameter Tuning, MLSys 2020; Optuna's variant promotes or stops a trial when it gets to a rung
    and never goes back to it.
    """

    def __init__(self, pruner: BasePruner, epochs: int) -> None:
        self._pruner, self._epochs = pruner, epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped after its last step."""
        step = trial.last_step
        return step is not None and step < self._epochs and self._pruner.prune(study, trial)
