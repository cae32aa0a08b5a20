import statistics

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.sweep.grid import Grid
from dfdet.sweep.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler, check_sampler
from dfdet.sweep.space.space import Dimension, Space
from dfdet.sweep.tpe import GroupedTPE

LR = Dimension(low=1e-5, high=1e-1, log=True)
WEIGHT = Dimension(low=0.0, high=1.0)
NUMBERS = Space(dimensions={"optim.lr": LR, "loss.uniformity": WEIGHT})
CONDITIONAL = Space(
    dimensions={
        "loss.uniformity": WEIGHT,
        "model.head": Dimension(choices=("linear", "cosine")),
        "model.margin": Dimension(low=0.0, high=0.5, when={"model.head": ("cosine",)}),
    }
)
FINITE = Space(
    dimensions={
        "loss.uniformity": Dimension(low=0.0, high=1.0, step=0.5),
        "model.head": Dimension(choices=("linear", "cosine")),
    }
)


def run(name, space, trials, score, seed=0, study=None):
    """Tells the study that many settings, each from a sampler of its own; gives their values."""
    study = study or optuna.create_study(direction="maximize")
    found = []
    for _ in range(trials):
        study.sampler = build_sampler(name, space, seed, len(study.trials))
        trial = study.ask()
        found.append(space.suggest(trial, Config()))
        study.tell(trial, score(found[-1]))
    return found


def near(values):
    return -((values["loss.uniformity"] - 0.8) ** 2) - 0.1 * (np.log10(values["optim.lr"]) + 3) ** 2


def distance(found):
    return statistics.median(-near(values) for values in found)


# ---- proposals


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_proposes_within_the_space_and_learns(name):
    found = run(name, NUMBERS, 14, near)
    assert all(1e-5 <= values["optim.lr"] <= 1e-1 for values in found)
    assert all(0 <= values["loss.uniformity"] <= 1 for values in found)
    assert len({values["optim.lr"] for values in found}) == 14


@pytest.mark.parametrize("name", ["tpe", "tpe-joint"])
def test_tpe_comes_closer_than_random(name):
    assert distance(run(name, NUMBERS, 50, near)[-15:]) < 0.25 * distance(run("random", NUMBERS, 50, near))


@pytest.mark.parametrize("name", ["tpe", "tpe-joint", "random"])
def test_same_seed_proposes_the_same(name):
    assert run(name, CONDITIONAL, 14, len) == run(name, CONDITIONAL, 14, len)


def test_another_seed_proposes_something_else():
    first, second = run("tpe", NUMBERS, 3, near, seed=0), run("tpe", NUMBERS, 3, near, seed=1)
    assert not {values["optim.lr"] for values in first} & {values["optim.lr"] for values in second}


@pytest.mark.parametrize("name", ["tpe", "tpe-joint"])
def test_conditional_dimension_is_learned_where_it_exists(name):
    def score(values):
        return values["model.margin"] if values["model.head"] == "cosine" else -1.0

    found = run(name, CONDITIONAL, 40, score)[-12:]
    margins = [values["model.margin"] for values in found if values["model.head"] == "cosine"]
    assert len(margins) >= 9
    assert statistics.median(margins) > 0.35


@pytest.mark.parametrize("name", ["tpe", "tpe-joint"])
def test_tpe_goes_beyond_the_old_range_once_the_space_is_widened(name):
    study = optuna.create_study(direction="maximize")
    narrow = Space(dimensions={"optim.lr": LR, "loss.uniformity": Dimension(low=0.0, high=0.2)})
    run(name, narrow, 20, near, study=study)
    wider = run(name, NUMBERS, 30, near, study=study)
    assert statistics.median(values["loss.uniformity"] for values in wider[-10:]) > 0.4


def test_dimensions_of_the_same_trials_are_modelled_together():
    study = optuna.create_study()
    for params in ({"a": 0.1, "b": 0.2}, {"a": 0.1, "b": 0.2, "c": 0.3}):
        ranges = {name: FloatDistribution(0, 1) for name in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=0.0))
    sampler = GroupedTPE({name: FloatDistribution(0, 1) for name in "abcd"}, 0, 1)
    assert sampler._groups(study) == [["a", "b"], ["c"], ["d"]]


def test_dimension_of_one_value_is_left_to_optuna():
    sampler = GroupedTPE({"a": FloatDistribution(0, 1), "b": CategoricalDistribution([1])}, 0, 1)
    assert list(sampler.infer_relative_search_space(optuna.create_study(), None)) == ["a"]


# ---- grid


def settings(found):
    return {(values["loss.uniformity"], values["model.head"]) for values in found}


def test_grid_has_each_combination_once():
    found = run("grid", FINITE, 6, lambda values: 0.0)
    assert settings(found) == {(u, head) for u in (0.0, 0.5, 1.0) for head in ("linear", "cosine")}


def test_order_of_the_grid_is_the_seeds():
    assert run("grid", FINITE, 4, len, seed=1) == run("grid", FINITE, 4, len, seed=1)
    assert run("grid", FINITE, 4, len, seed=1) != run("grid", FINITE, 4, len, seed=2)


def test_widened_grid_goes_on_where_the_old_one_ended():
    study = optuna.create_study()
    before = run("grid", FINITE, 6, lambda values: 0.0, study=study)
    wider = FINITE.model_copy(
        update={"dimensions": FINITE.dimensions | {"loss.uniformity": Dimension(low=0.0, high=1.5, step=0.5)}}
    )
    after = run("grid", wider, 2, lambda values: 0.0, study=study)
    assert settings(after) == {(1.5, "linear"), (1.5, "cosine")}
    assert not settings(before) & settings(after)


def test_queued_combination_counts_as_taken():
    study = optuna.create_study()
    study.enqueue_trial({"loss.uniformity": 0.5, "model.head": "linear"})
    grid = Grid(FINITE.grid(), 0)
    assert (0.5, "linear") not in grid.remaining(study.trials)
    assert len(grid.remaining(study.trials)) == 5


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "space", "objectives", "pruner", "said"),
    [
        ("bayes", NUMBERS, 1, "asha", "--sampler bayes: no such sampler; give one of tpe"),
        ("tpe", NUMBERS, 1, "hyperband", "--pruner hyperband: no such pruner; give one of asha"),
        ("tpe", NUMBERS, 2, "asha", "--pruner asha: stops settings by one objective, and there are 2"),
        ("gp", NUMBERS, 2, "none", "--sampler gp: searches one objective, and there are 2"),
        ("cmaes", NUMBERS, 2, "none", "--sampler cmaes: searches one objective"),
        ("grid", NUMBERS, 1, "none", "optim.lr (1e-05 to 0.1 (log)) has no finite number of values"),
        ("grid", CONDITIONAL, 1, "none", "model.margin exists only under some values of model.head"),
        ("gp", CONDITIONAL, 1, "none", "model.margin exists only under some values of model.head"),
        ("cmaes", CONDITIONAL, 1, "none", "model.margin exists only under some values of model.head"),
        ("cmaes", FINITE, 1, "none", "model.head has choices, and it takes numbers only"),
        ("cmaes", Space(dimensions={"optim.lr": LR}), 1, "none", "needs two dimensions or more"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(name, space, objectives, pruner, said):
    with pytest.raises(ConfigError) as error:
        check_sampler(name, space, objectives, pruner)
    assert said in str(error.value)


def test_grid_that_nobody_could_run_is_refused():
    steps = {f"data.augment.{name}": Dimension(low=0.0, high=0.9, step=0.01) for name in ("flip", "blur")}
    space = Space(dimensions={**steps, "loss.uniformity": Dimension(low=0.0, high=1.0, step=0.01)})
    with pytest.raises(ConfigError, match="has 836,381 settings, more than 100,000"):
        check_sampler("grid", space, 1, "none")


@pytest.mark.parametrize("name", ["tpe", "tpe-joint", "random", "nsga2"])
def test_conditional_space_and_two_objectives_are_searched(name):
    check_sampler(name, CONDITIONAL, 2, "none")


def test_every_sampler_takes_what_suits_it():
    for name in SAMPLERS:
        check_sampler(name, FINITE if name == "grid" else NUMBERS, 1, "asha")


# ---- early stopping


def stopped_at(pruner, curves):
    """Epoch at which each curve was stopped, one after another; None for those that ran through."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    found = []
    for curve in curves:
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                found.append(epoch)
                break
        else:
            study.tell(trial, curve[-1])
            found.append(None)
    return found


def test_asha_stops_at_its_rungs_all_but_the_best_third():
    flat = [[level] * 10 for level in (0.5, 0.6, 0.55, 0.7, 0.1, 0.65)]
    assert stopped_at(build_pruner("asha", 10, reduction=3), flat) == [None, None, 1, None, 1, 3]


def test_asha_waits_for_the_first_rung():
    flat = [[level] * 10 for level in (0.5, 0.1, 0.1)]
    assert stopped_at(build_pruner("asha", 10, min_epochs=4), flat) == [None, 4, 4]


def test_who_has_had_the_full_budget_is_not_stopped():
    late = [[0.9] * 9, [0.9] * 8 + [0.1]]
    assert stopped_at(build_pruner("asha", 9), late) == [None, None]
    assert stopped_at(build_pruner("asha", 10), [[0.9] * 10, [0.9] * 8 + [0.1] * 2]) == [None, 9]


def test_median_stops_below_the_median_of_five():
    flat = [[level] * 4 for level in (0.5, 0.6, 0.7, 0.8, 0.9, 0.65, 0.75)]
    assert stopped_at(build_pruner("median", 4), flat) == [None] * 5 + [1, None]


def test_none_stops_nothing():
    assert stopped_at(build_pruner("none", 3), [[0.9] * 3, [0.1] * 3]) == [None, None]


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
def test_pruner_that_could_never_stop_is_refused(name):
    with pytest.raises(ConfigError, match=r"--min-epochs 10: no setting can be stopped before .* 10"):
        build_pruner(name, 10, min_epochs=10)
