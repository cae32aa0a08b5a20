"""The default space of every recipe: valid settings only, and the published ones inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES
from dfdet.sweep.space.checks import check_space
from dfdet.sweep.space.defaults import default_space, published_points
from dfdet.sweep.space.file import read_space
from dfdet.sweep.space.space import Dimension, Space

NARROWED = """
dimensions:
  loss.uniformity: {low: 0.05, high: 0.8, log: true}
  optim.lr: {high: 2e-2}
  model.head: [cosine, linear]
  model.margin: {step: 0.1}
  optim.warmup_epochs: null
  tuning.lora_rank: {low: 2, high: 64, log: true, when: {tuning.mode: lora}}
  tuning.mode: [ln, lora]
"""


def value_of(dimension: Dimension) -> st.SearchStrategy[Any]:
    if dimension.count is not None:
        return st.integers(0, dimension.count - 1).map(dimension.nth)
    return st.floats(*dimension.range)


def assert_round_trip(space: Space, base: Config, data: st.DataObject) -> None:
    """Any values make a valid config, and Optuna hands the same setting out again."""
    setting = space.setting(lambda path, dimension: data.draw(value_of(dimension), path), base)
    config = base.replace(setting)
    point = space.fits(setting, base)
    assert isinstance(point, dict), point
    study = optuna.create_study()
    study.enqueue_trial(point)
    trial = study.ask()
    assert space.suggest(trial, base) == setting
    study.tell(trial, 0.5)
    assert study.best_params == point
    assert base.replace(space.setting(lambda path, _: study.best_params[path], base)) == config


def narrowed(base: Config, folder: Path) -> Space:
    path = folder / "space.yaml"
    path.write_text(NARROWED)
    return read_space(path, default_space(base), base)


@pytest.mark.parametrize("recipe", RECIPES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_setting_of_a_default_space_is_valid_and_survives_optuna(
    recipe: str, data: st.DataObject
) -> None:
    base = RECIPES[recipe]()
    assert_round_trip(default_space(base), base, data)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_setting_of_a_narrowed_space_is_valid_and_survives_optuna(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = RECIPES["demo"]().replace({"model.head": "cosine", "model.margin": 0.2})
    space = narrowed(base, tmp_path_factory.mktemp("narrowed"))
    assert list(space.dimensions)[-2:] == ["tuning.mode", "tuning.lora_rank"]
    assert_round_trip(space, base, data)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_settings_that_a_sampler_proposes_are_valid(recipe: str, sampler: Any) -> None:
    base = RECIPES[recipe]()
    space = default_space(base)
    study = optuna.create_study(sampler=sampler(seed=3))
    for k in range(15):
        trial = study.ask()
        setting = space.suggest(trial, base)
        assert trial.params == space.fits(setting, base)
        study.tell(trial, k % 4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipes_default_space_passes_the_checks(recipe: str) -> None:
    base = RECIPES[recipe]()
    check_space(default_space(base), base)


BASES: list[dict[str, Any]] = [
    {"loss.uniformity": 5.0, "loss.label_smoothing": 0.4},
    {"model.head": "angular", "model.margin": 0.9, "model.scale": 128.0},
    {"loss.slerp": True, "loss.slerp_low": 0.7, "loss.slerp_high": 0.9},
    {"loss.slerp_low": 0.0, "loss.slerp_high": 0.0},
    {"loss.slerp_low": 1.0, "loss.slerp_high": 1.0},
    {"optim.epochs": 1, "optim.warmup_epochs": 0.0},
    {"optim.warmup_epochs": 9.0},
    {"optim.schedule": "constant", "optim.lr": 1e-5},
    {"optim.min_lr": 2e-2},
    {"data.crop_scale": 2.5, "data.augment.strength": 2.0},
]


@pytest.mark.parametrize("values", BASES, ids=str)
def test_the_default_space_holds_the_bases_own_values(values: dict[str, Any]) -> None:
    base = RECIPES["demo"]().replace(values)
    space = default_space(base)
    check_space(space, base)
    point = space.fits(published_points(base)["recipe"], base)
    assert isinstance(point, dict), point
    assert base.replace(point) == base


def test_the_default_space_searches_what_regularises() -> None:
    base = RECIPES["gend"]()
    assert list(default_space(base).dimensions) == [
        "loss.uniformity",
        "loss.alignment",
        "loss.label_smoothing",
        "loss.slerp",
        "loss.slerp_low",
        "loss.slerp_high",
        "model.head",
        "model.margin",
        "model.scale",
        "data.crop_scale",
        "data.augment.strength",
        "optim.lr",
        "optim.warmup_epochs",
    ]


def test_a_probe_searches_no_pairwise_weights_and_far_larger_rates() -> None:
    space = default_space(RECIPES["linear_probe"]())
    assert not {"loss.uniformity", "loss.alignment"} & space.dimensions.keys()
    assert space.dimensions["optim.lr"].range == pytest.approx((5e-5, 8e-3))


def test_warm_up_stays_below_the_epochs() -> None:
    base = RECIPES["demo"]().replace({"optim.epochs": 2})
    assert default_space(base).dimensions["optim.warmup_epochs"].range == (0.0, 0.5)


def test_rates_stay_above_the_schedules_floor() -> None:
    base = RECIPES["paper"]()
    assert default_space(base).dimensions["optim.lr"].range == pytest.approx((5e-5, 4e-4))
    constant = base.replace({"optim.schedule": "constant"})
    assert default_space(constant).dimensions["optim.lr"].range == pytest.approx((1.6e-5, 4e-4))


def test_published_settings_are_trials_with_their_weights() -> None:
    base = RECIPES["demo"]()
    space = default_space(base)
    points = published_points(base)
    weights = ("loss.slerp", "loss.alignment", "loss.uniformity", "model.head")
    fitted = {name: space.fits(point, base) for name, point in points.items()}
    assert {name: tuple(point[path] for path in weights) for name, point in fitted.items()} == {  # type: ignore[index]
        "recipe": (False, 0.0, 0.0, "linear"),
        "paper-run-file": (True, 0.0, 0.0, "linear"),
        "paper-released": (True, 0.1, 0.1, "linear"),
        "gend": (False, 0.1, 0.5, "linear"),
    }


@pytest.mark.parametrize(("recipe", "same"), [("paper", "paper-released"), ("gend", "gend")])
def test_a_published_setting_that_is_the_recipe_is_not_listed_twice(recipe: str, same: str) -> None:
    points = published_points(RECIPES[recipe]())
    assert same not in points
    assert len(points) == 3


def test_a_published_setting_that_a_probe_cannot_have_tells_why() -> None:
    base = RECIPES["linear_probe"]()
    reason = default_space(base).fits(published_points(base)["gend"], base)
    assert reason == "loss.alignment=0.1: not searched, and the base config has 0.0"


@pytest.mark.parametrize(("stored", "high"), [(1.3, 1.3), (1.45, 1.45), (1.6, 1.6), (4.0, 1.6)])
def test_the_default_space_keeps_to_what_the_sets_hold(stored: float, high: float) -> None:
    base = RECIPES["gend"]()
    space = default_space(base, stored)
    assert space.dimensions["data.crop_scale"].range == (1.0, high)
    check_space(space, base, stored)


def test_a_range_beyond_what_the_sets_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.crop_scale: 1.6 is wider than the crops of the sets, 1.3"):
        check_space(default_space(RECIPES["gend"]()), RECIPES["gend"](), 1.3)
