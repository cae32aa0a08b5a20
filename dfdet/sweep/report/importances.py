"""Which dimensions told good settings from others, and how far chance alone would have come.

PED-ANOVA (arXiv 2304.10255; conditional dimensions: arXiv 2601.20800): how much the best quarter of the
settings differs from all of them in a dimension. It sees complete settings only: a stopped one has no
final score.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from optuna import Study
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import TrialState

MIN_TRIALS = 8
"""Fewer complete settings than these tell nothing: two of them would be the best quarter."""
BEST_SHARE = 0.25
SHUFFLES = 40
CHANCE_QUANTILE = 0.9


@dataclass(frozen=True)
class Importances:
    """Of the dimensions for one objective."""

    trials: int
    """Complete settings that they rest on."""
    shares: dict[str, float]
    """By dotted path, largest first; they sum to 1."""
    chance: dict[str, float]
    """What a dimension without any effect stays below in 9 of 10 cases, in the same unit."""


def importances(study: Study, place: int = 0) -> Importances | str:
    """The importances for an objective, or why there are none.

    Chance is measured: the scores are shuffled among the settings 40 times.

    Args:
        study: Of the search.
        place: Which of its objectives.
    """
    sign = -1 if study.directions[place] == StudyDirection.MAXIMIZE else 1  # PED-ANOVA takes less as better
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    scores = {trial.number: sign * trial.values[place] for trial in trials}
    if len(scores) < MIN_TRIALS:
        return f"{len(scores)} complete settings are too few to tell: {MIN_TRIALS} are needed."
    if len(set(scores.values())) == 1:
        return "All complete settings have the same score: no dimension mattered."
    found = _evaluate(study, scores)
    total = sum(found.values())
    if total <= 0:
        return "The best quarter of the settings differs from the others in no dimension."
    rng, values, by_chance = random.Random(0), list(scores.values()), []  # noqa: S311
    for _ in range(SHUFFLES):
        rng.shuffle(values)
        by_chance.append(_evaluate(study, dict(zip(scores, values, strict=True))))
    rank = math.ceil(CHANCE_QUANTILE * SHUFFLES) - 1
    chance = {path: sorted(one.get(path, 0.0) for one in by_chance)[rank] / total for path in found}
    shares = {path: value / total for path, value in sorted(found.items(), key=lambda pair: -pair[1])}
    return Importances(len(scores), shares, chance)


def _evaluate(study: Study, scores: Mapping[int, float]) -> dict[str, float]:
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that a condition makes few: their share says it
        return get_param_importances(
            study,
            evaluator=evaluator,
            target=lambda trial: scores.get(trial.number, math.nan),  # nan: came since
            normalize=False,
        )
