"""What a report is made of, read once from the studies and their header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from dfdet.sweep.finals import FinalRow, choose_baseline, compare
from dfdet.sweep.objective import Objective
from dfdet.sweep.report.parts import distributions_of, short_names
from dfdet.sweep.results import Direction, Setting, best_first, metric_text, pareto_front, read_settings


@dataclass(frozen=True)
class Facts:
    """Of one sweep at one moment."""

    folder: Path
    study: Study
    header: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    trials: tuple[FrozenTrial, ...]
    settings: tuple[Setting, ...]
    """Those of the search that were begun, by number."""
    ranked: tuple[Setting, ...]
    """The complete ones, best first."""
    front: tuple[Setting, ...]
    """The best one; of several objectives, the Pareto front."""
    last_runs: tuple[Setting, ...]
    """Of the final study; their numbers are not those of settings."""
    rows: tuple[FinalRow, ...]
    dimensions: dict[str, BaseDistribution]
    names: dict[str, str]
    """Short name of each dimension by its path."""

    @property
    def metrics(self) -> list[str]:
        """The objectives in few words."""
        return [metric_text(objective.metric) for objective in self.objectives]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of the objectives."""
        return tuple(objective.direction for objective in self.objectives)

    @property
    def epochs(self) -> int:
        """That a setting without its own is trained for (epochs)."""
        return int(self.header["base"]["optim"]["epochs"])

    @property
    def seeds(self) -> int:
        """That a setting of the search is trained on (seeds)."""
        return int(self.header.get("options", {}).get("seeds", 1))

    def count(self, state: str) -> int:
        """Settings of the search in a state."""
        return sum(setting.state == state for setting in self.settings)

    def setting(self, number: int) -> Setting:
        """The setting of this number."""
        return next(setting for setting in self.settings if setting.number == number)


def read_facts(folder: Path, study: Study, final: Study, header: Mapping[str, Any]) -> Facts:
    """Reads both studies, once.

    Args:
        folder: Of the sweep.
        study: Of the search.
        final: Of the last runs.
        header: ``base``, ``space``, ``options`` and ``objectives`` as JSON.
    """
    objectives = tuple(Objective.parse(text) for text in header["objectives"])
    directions = tuple(objective.direction for objective in objectives)
    trials = tuple(study.get_trials(deepcopy=False))
    settings = tuple(setting for setting in read_settings(trials) if setting.state != "waiting")
    last = final.get_trials(deepcopy=False)
    single = len(objectives) == 1
    dimensions = distributions_of(trials, header.get("space", {}).get("dimensions", {}))
    ranked = best_first(settings, directions)
    rows = compare(last, directions[0], choose_baseline(trials, directions[0])) if single else []
    return Facts(
        folder=folder,
        study=study,
        header=header,
        objectives=objectives,
        trials=trials,
        settings=settings,
        ranked=tuple(ranked),
        front=tuple(ranked[:1] if single else pareto_front(settings, directions)),
        last_runs=tuple(read_settings(last)),
        rows=tuple(rows),
        dimensions=dimensions,
        names=short_names(dimensions),
    )
