"""How a sweep searches: its budget, its sampler, when it stops a setting early, how it names a winner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dfdet.config import Section

Sampler = Literal["tpe", "tpe-joint", "random", "grid", "cmaes", "gp", "nsga2"]
Pruner = Literal["asha", "median", "none"]


class Options(Section):
    """Flags of ``tune.py`` besides those of the config."""

    trials: int = Field(32, ge=1)
    """Settings to try, those of a resumed sweep counted in (settings)."""
    concurrent: int = Field(0, ge=0)
    """Settings trained side by side; 0: as many as there is room for (settings)."""
    space: str | None = None
    """YAML file that narrows or replaces the searched dimensions."""
    sampler: Sampler = "tpe"
    """Who proposes settings: Optuna's TPE (joint: dimensions modelled together), random, grid, CMA-ES,
    Gaussian process or NSGA-II."""
    pruner: Pruner = "asha"
    """Who stops a setting early: asha (successive halving), median, or none."""
    reduction: int = Field(3, ge=2, le=16)
    """ASHA lets the best 1/reduction of a rung go on (factor)."""
    min_epochs: int = Field(2, ge=1)
    """Epochs that every setting is trained before it may be stopped (epochs)."""
    objective: tuple[str, ...] = ()
    """Metrics of a run's validation or speed, each METRIC or METRIC:min; two or more search the Pareto
    front. None: val/<first set>/video/auroc."""
    seeds: int = Field(1, ge=1, le=100)
    """Seeds that a setting is scored over, by their mean; early stopping looks at the first (seeds)."""
    final: int = Field(3, ge=0)
    """Best settings that are trained again, beside the published one that did best, before the winner is
    named; 0: none (settings)."""
    final_seeds: int = Field(5, ge=1, le=100)
    """Fresh seeds of these last runs (seeds)."""
    max_failed: int = Field(5, ge=0)
    """Failed settings at which the sweep stops (settings)."""
    study: str | None = None
    """Where the study lives, as sqlite:///FILE or postgresql://HOST/DB; None: study.journal in its folder."""
