import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from dfdet.sweep.report.importances import importances

UNIT = FloatDistribution(0, 1)


def study_of(score, count, direction="maximize"):
    """Settings drawn at random; ``only`` exists under half of them."""
    rng, study = random.Random(0), optuna.create_study(direction=direction)
    for _ in range(count):
        params = {"matters": rng.random(), "idle": rng.random(), "kind": rng.choice("xy")}
        dists = {"matters": UNIT, "idle": UNIT, "kind": CategoricalDistribution(("x", "y"))}
        if params["kind"] == "y":
            params["only"], dists["only"] = rng.random(), UNIT
        study.add_trial(create_trial(value=score(params), params=params, distributions=dists))
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_matters_passes_chance_and_what_is_idle_does_not(direction):
    sign = 1 if direction == "maximize" else -1
    found = importances(study_of(lambda p: -sign * (p["matters"] - 0.8) ** 2, 60, direction))
    assert next(iter(found.shares)) == "matters"
    assert found.shares["matters"] > found.chance["matters"]
    assert found.shares["idle"] < found.chance["idle"]
    assert sum(found.shares.values()) == pytest.approx(1)


def test_conditional_dimensions_are_among_them():
    found = importances(study_of(lambda p: p["matters"], 40))
    assert set(found.shares) == set(found.chance) == {"matters", "idle", "kind", "only"}
    assert found.trials == 40


def test_the_same_study_gives_the_same_numbers():
    study = study_of(lambda p: p["matters"], 20)
    assert importances(study) == importances(study)


def test_few_settings_tell_nothing():
    assert importances(study_of(lambda p: p["matters"], 7)).startswith("7 complete settings are too few")


def test_stopped_settings_do_not_count():
    study = study_of(lambda p: p["matters"], 7)
    for _ in range(5):
        study.add_trial(
            create_trial(state=TrialState.PRUNED, params={"idle": 0.5}, distributions={"idle": UNIT})
        )
    assert importances(study).startswith("7 complete settings are too few")


def test_equal_scores_tell_nothing():
    assert importances(study_of(lambda p: 1.0, 20)).startswith("All complete settings have the same score")


def test_each_objective_has_its_own():
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = random.Random(0)
    for _ in range(60):
        params = {"a": rng.random(), "b": rng.random()}
        values = [params["a"], params["b"]]
        study.add_trial(create_trial(values=values, params=params, distributions={"a": UNIT, "b": UNIT}))
    assert [next(iter(importances(study, place).shares)) for place in (0, 1)] == ["a", "b"]
