"""Dimensions and spaces: what a trial is given, which values hold, which conditions count."""

from __future__ import annotations

import json
import random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dfdet.config import Config
from dfdet.recipes import RECIPES
from dfdet.sweep.space.defaults import default_space
from dfdet.sweep.space.space import Dimension, Space

BASE = RECIPES["paper"]()
COSINE = BASE.replace({"model.head": "cosine", "model.margin": 0.2, "model.scale": 30.0})
HEADS = {
    "model.head": Dimension(choices=("linear", "cosine")),
    "model.margin": Dimension(low=0.1, high=0.5, when={"model.head": ("cosine", "angular")}),
    "model.scale": Dimension(low=8, high=64, log=True, when={"model.head": ("cosine",)}),
}


def suggested(space: Space, base: Config, params: dict[str, Any]) -> dict[str, Any]:
    study = optuna.create_study()
    study.enqueue_trial(params)
    return space.suggest(study.ask(), base)


# One dimension


def test_kinds_of_dimension_are_optunas_distributions() -> None:
    space = Space(
        dimensions={
            "optim.lr": Dimension(low=1e-4, high=1e-2, log=True),
            "loss.uniformity": Dimension(low=0, high=1, step=0.25),
            "tuning.lora_rank": Dimension(low=4, high=16, step=4, integer=True),
            "loss.slerp": Dimension(choices=(False, True)),
        }
    )
    assert space.distributions() == {
        "optim.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "loss.uniformity": FloatDistribution(0.0, 1.0, step=0.25),
        "tuning.lora_rank": IntDistribution(4, 16, step=4),
        "loss.slerp": CategoricalDistribution((False, True)),
    }


def test_a_trial_stores_the_distributions_of_the_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = default_space(BASE)
    trial = study.ask()
    space.suggest(trial, BASE)
    assert trial.distributions == {path: space.distributions()[path] for path in trial.params}


def test_an_integer_dimension_gives_integers() -> None:
    space = Space(dimensions={"tuning.lora_rank": Dimension(low=4, high=16, step=4, integer=True)})
    value = suggested(space, BASE, {"tuning.lora_rank": 12})["tuning.lora_rank"]
    assert value == 12
    assert type(value) is int


def test_a_grid_of_decimal_steps_has_decimal_numbers() -> None:
    dimension = Dimension(low=0, high=0.5, step=0.1)
    assert dimension.grid() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert dimension.count == 6


def test_a_grid_of_integers_and_of_choices() -> None:
    assert Dimension(low=1, high=4, integer=True).grid() == [1, 2, 3, 4]
    assert Dimension(choices=("b", "a")).grid() == ["b", "a"]


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension(low=0.1, high=0.5), [0.1, 0.3, 0.5], [0.09, 0.51, "0.3", True, None]),
        (Dimension(low=0.1, high=0.5, step=0.2), [0.1, 0.3, 0.5], [0.2, 0.7]),
        (Dimension(low=2, high=8, integer=True), [2, 8, 3.0], [2.5, 9]),
        (Dimension(choices=("a", "b")), ["a"], ["c", 0]),
    ],
)
def test_a_dimension_holds_its_values_only(
    dimension: Dimension, inside: list[Any], outside: list[Any]
) -> None:
    assert [dimension.holds(value) for value in inside] == [True] * len(inside)
    assert [dimension.holds(value) for value in outside] == [False] * len(outside)


def test_random_values_fill_the_dimension_and_a_log_range_evenly() -> None:
    rng = random.Random(0)
    log = Dimension(low=1e-4, high=1e-2, log=True)
    values = [log.draw(rng) for _ in range(400)]
    assert all(log.holds(value) for value in values)
    assert 150 < sum(value < 1e-3 for value in values) < 250  # half of the decades
    whole = Dimension(low=2, high=4, integer=True)
    assert {whole.draw(rng) for _ in range(50)} == {2, 3, 4}


def test_a_dimension_tells_its_values_in_words() -> None:
    assert Dimension(low=1e-3, high=0.1, log=True).describe() == "0.001 to 0.1 (log)"
    assert Dimension(low=4, high=16, step=4, integer=True).describe() == "4 to 16 (integer, step 4)"
    assert Dimension(choices=(False, True)).describe() == "False, True"
    assert HEADS["model.margin"].conditions() == "model.head in [cosine, angular]"


# Conditions and resets


def test_a_dimension_exists_only_under_its_condition() -> None:
    space = Space(dimensions=HEADS)
    params = {"model.head": "cosine", "model.margin": 0.3, "model.scale": 16.0}
    assert suggested(space, BASE, params) == params
    assert suggested(space, BASE, {"model.head": "linear"}) == {"model.head": "linear"}


def test_a_condition_on_a_field_that_is_not_searched_looks_at_the_base() -> None:
    space = Space(dimensions={"model.margin": HEADS["model.margin"]})
    assert suggested(space, COSINE, {"model.margin": 0.3}) == {"model.margin": 0.3}
    assert suggested(space, BASE, {}) == {}


def test_a_dormant_value_that_contradicts_the_setting_goes_to_its_default_and_no_other_does() -> None:
    setting = suggested(Space(dimensions=HEADS), COSINE, {"model.head": "linear"})
    assert setting == {"model.head": "linear", "model.margin": 0.0}
    config = COSINE.replace(setting)
    assert (config.model.head, config.model.margin, config.model.scale) == ("linear", 0.0, 30.0)


def test_a_dormant_value_that_does_no_harm_stays_the_bases() -> None:
    base = BASE.replace({"loss.slerp_low": 0.25})
    space = Space(
        dimensions={
            "loss.slerp": Dimension(choices=(False, True)),
            "loss.slerp_low": Dimension(low=0, high=0.5, when={"loss.slerp": (True,)}),
        }
    )
    setting = suggested(space, base, {"loss.slerp": False})
    assert setting == {"loss.slerp": False}
    assert base.replace(setting).loss.slerp_low == 0.25


def test_a_reset_is_part_of_the_setting_but_no_parameter_of_the_trial() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"model.head": "linear"})
    trial = study.ask()
    setting = Space(dimensions=HEADS).suggest(trial, COSINE)
    assert "model.margin" in setting
    assert trial.params == {"model.head": "linear"}


# Properties of a space


def test_size_and_grid_of_a_finite_space() -> None:
    space = Space(
        dimensions={
            "loss.uniformity": Dimension(low=0, high=1, step=0.5),
            "loss.slerp": Dimension(choices=(False, True)),
        }
    )
    assert (space.finite, space.size, space.conditional) == (True, 6, False)
    assert space.grid() == {"loss.uniformity": [0.0, 0.5, 1.0], "loss.slerp": [False, True]}


def test_a_continuous_dimension_makes_a_space_infinite() -> None:
    space = Space(dimensions=HEADS)
    assert (space.finite, space.size, space.conditional) == (False, None, True)


def test_a_space_survives_json() -> None:
    space = default_space(BASE)
    again = Space.model_validate(json.loads(json.dumps(space.model_dump(mode="json"))))
    assert again == space
    assert list(again.dimensions) == list(space.dimensions)
    assert again.dimensions["loss.slerp"].choices == (False, True)


# resolved


def test_resolving_drops_what_never_exists() -> None:
    space = Space(dimensions=HEADS | {"model.head": Dimension(choices=("linear",))})
    assert list(space.resolved(BASE).dimensions) == ["model.head"]
    unsearched = Space(dimensions={path: HEADS[path] for path in ("model.margin", "model.scale")})
    assert unsearched.resolved(BASE).dimensions == {}


def test_resolving_drops_conditions_that_always_hold() -> None:
    space = Space(dimensions=HEADS | {"model.head": Dimension(choices=("cosine", "angular"))}).resolved(BASE)
    assert space.dimensions["model.margin"].when == {}
    assert space.dimensions["model.scale"].when == {"model.head": ("cosine",)}
    assert Space(dimensions={"model.margin": HEADS["model.margin"]}).resolved(COSINE).conditional is False


def test_a_parent_that_may_be_dormant_keeps_its_childs_condition() -> None:
    space = Space(
        dimensions={
            "loss.slerp": Dimension(choices=(False, True)),
            "model.head": Dimension(choices=("cosine",), when={"loss.slerp": (True,)}),
            "model.margin": HEADS["model.margin"],
        }
    ).resolved(BASE)  # whose head is linear
    assert space.dimensions["model.margin"].when == HEADS["model.margin"].when


def test_a_condition_on_a_range_stays_where_it_may_hold() -> None:
    dimensions = {
        "tuning.lora_rank": Dimension(low=4, high=6, integer=True),
        "loss.uniformity": Dimension(low=0, high=1, when={"tuning.lora_rank": (4,)}),
        "loss.alignment": Dimension(low=0, high=1, when={"tuning.lora_rank": (4, 5, 6)}),
        "loss.label_smoothing": Dimension(low=0, high=0.1, when={"tuning.lora_rank": (8,)}),
    }
    space = Space(dimensions=dimensions).resolved(BASE)
    assert {path: dimension.when for path, dimension in space.dimensions.items()} == {
        "tuning.lora_rank": {},
        "loss.uniformity": {"tuning.lora_rank": (4,)},
        "loss.alignment": {},
    }


# fits


def test_a_point_that_fits_gives_the_parameters_of_its_dimensions() -> None:
    point = {"model.head": "cosine", "model.margin": 0.3, "loss.uniformity": 0.1}
    assert Space(dimensions=HEADS).fits(point, BASE) == {
        "model.head": "cosine",
        "model.margin": 0.3,
        "model.scale": 16.0,  # as the base has it
    }


def test_a_point_passes_over_dormant_dimensions() -> None:
    point = {"model.head": "linear", "model.margin": 0.0, "model.scale": 1.0}
    assert Space(dimensions=HEADS).fits(point, COSINE) == {"model.head": "linear"}


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (
            {"model.head": "cosine", "model.margin": 0.7},
            "model.margin=0.7: not among the searched values, 0.1 to 0.5",
        ),
        ({"model.head": "angular"}, "model.head=angular: not among the searched values, linear, cosine"),
        ({"loss.uniformity": 0.5}, "loss.uniformity=0.5: not searched, and the base config has 0.1"),
        ({"loss.uniform": 0.5}, "loss.uniform: no such field; did you mean loss.uniformity?"),
    ],
)
def test_a_point_that_does_not_fit_tells_why(point: dict[str, Any], reason: str) -> None:
    assert Space(dimensions=HEADS).fits(point, BASE) == reason


def test_a_point_that_is_no_valid_config_does_not_fit() -> None:
    space = Space(dimensions={"optim.lr": Dimension(low=1e-6, high=1e-3, log=True)})
    assert space.fits({"optim.lr": 1e-6}, BASE) == (
        "optim.min_lr=5e-05: above optim.lr=1e-06; set --optim.min_lr 1e-06 or lower"
    )


# Any dimension


@st.composite
def stepped(draw: st.DrawFn) -> Dimension:
    low = draw(st.integers(-50, 50)) / 10
    step = draw(st.integers(1, 30)) / 10
    return Dimension(low=low, high=round(low + step * draw(st.integers(1, 40)), 10), step=step)


@given(stepped())
def test_every_value_of_a_grid_is_one_that_optuna_takes(dimension: Dimension) -> None:
    distribution = dimension.distribution()
    values = dimension.grid()
    assert len(set(values)) == dimension.count
    assert (values[0], values[-1]) == dimension.ends
    assert all(dimension.holds(value) for value in values)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
