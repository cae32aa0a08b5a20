"""A bad space is refused before anything starts: one line with the dimension, the cause and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES
from dfdet.sweep.space.checks import check_space
from dfdet.sweep.space.space import Dimension, Space

BASE = RECIPES["paper"]()


def refusal(dimensions: dict[str, Dimension], base: Config = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        check_space(Space(dimensions=dimensions), base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_space_is_refused() -> None:
    assert refusal({}) == "sweep space: empty; give a dimension, as loss.uniformity: {low: 0, high: 1}"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({}, "neither range nor choices; give low and high, or choices"),
        ({"low": 0.1}, "neither range nor choices; give low and high, or choices"),
        (
            {"low": 0.5, "high": 0.1},
            "low=0.5 is not below high=0.1; swap them, or set a single value in the config",
        ),
        (
            {"low": 0.5, "high": 0.5},
            "low=0.5 is not below high=0.5; swap them, or set a single value in the config",
        ),
        (
            {"low": 0, "high": 1, "log": True},
            "low=0 has no logarithm; raise low above 0, or set log: false",
        ),
        (
            {"low": 0.1, "high": 1, "log": True, "step": 0.1},
            "step=0.1 does not go with log; drop one of the two",
        ),
        (
            {"low": 0, "high": 1, "step": 2},
            "step=2 is not between 0 and high - low = 1; choose a smaller one",
        ),
        (
            {"low": 0, "high": 1, "step": -0.5},
            "step=-0.5 is not between 0 and high - low = 1; choose a smaller one",
        ),
        (
            {"low": 0, "high": 1, "step": 0.3},
            "steps of 0.3 from 0 miss high=1; set high: 0.9 or another step",
        ),
        (
            {"low": 0, "high": 0.5, "integer": True},
            "integer: true, but low, high or step is no whole number; round it",
        ),
        ({"choices": ()}, "choices is empty; give the values to choose from"),
        ({"choices": (0.1, 0.5, 0.1)}, "the choice 0.1 is given twice; give it once"),
        (
            {"choices": (0.1, 0.5), "low": 0},
            "choices and low contradict each other; give either choices or a range",
        ),
        (
            {"choices": (0.1, 0.5), "log": True},
            "choices and log contradict each other; give either choices or a range",
        ),
        (
            {"low": -1, "high": 1},
            "loss.uniformity=-1.0: input should be greater than or equal to 0; change that value",
        ),
        (
            {"choices": (0.1, "0.5")},
            "loss.uniformity='0.5': the field would read it as 0.5; write 0.5",
        ),
        ({"choices": (0.1, True)}, "loss.uniformity=True: the field would read it as 1.0; write 1.0"),
        (
            {"choices": ("much", 0.1)},
            "loss.uniformity='much': input should be a valid number, unable to parse string as a number;"
            " change that value",
        ),
    ],
)
def test_a_dimension_of_a_bad_form_is_refused(spec: dict[str, Any], problem: str) -> None:
    assert refusal({"loss.uniformity": Dimension(**spec)}) == f"sweep space, loss.uniformity: {problem}"


@pytest.mark.parametrize(
    ("path", "spec", "problem"),
    [
        (
            "optim.lr",
            {"low": 0.1, "high": 2},
            "optim.lr=2.0: input should be less than or equal to 1; change that value",
        ),
        (
            "loss.label_smoothing",
            {"low": 0, "high": 1},
            "loss.label_smoothing=1.0: input should be less than 1; change that value",
        ),
        (
            "model.head",
            {"choices": ("linear", "cosin")},
            "model.head='cosin': input should be 'linear', 'cosine' or 'angular'; change that value",
        ),
        (
            "model.head",
            {"low": 0, "high": 2},
            "holds no numbers, so it has no range; write choices, as [a, b]",
        ),
        ("loss.slerp", {"low": 0, "high": 1}, "is on or off, not a range; write choices, as [true, false]"),
        ("tuning.lora_rank", {"low": 4, "high": 16}, "holds whole numbers; add integer: true"),
        ("loss.uniformty", {"low": 0, "high": 1}, "no such field; did you mean loss.uniformity?"),
        (
            "engine.zero_stage",
            {"choices": (0, 2)},
            "not searched, since it changes speed and memory, not what is learned; set it for all,"
            " as with --engine.zero_stage",
        ),
        (
            "data.train",
            {"choices": ("a.json",)},
            "not searched, since settings trained or measured on different sets cannot be compared;"
            " set it for all, as with --data.train",
        ),
    ],
)
def test_a_dimension_that_its_field_does_not_take_is_refused(
    path: str, spec: dict[str, Any], problem: str
) -> None:
    assert refusal({path: Dimension(**spec)}) == f"sweep space, {path}: {problem}"


# Conditions

HEAD = Dimension(choices=("linear", "cosine"))


def margin(**when: tuple[Any, ...]) -> Dimension:
    return Dimension(
        low=0, high=0.5, when={name.replace("__", "."): allowed for name, allowed in when.items()}
    )


@pytest.mark.parametrize(
    ("dimensions", "problem"),
    [
        (
            {"model.margin": margin(model__haed=("cosine",))},
            "its condition names model.haed: no such field; did you mean model.head?",
        ),
        (
            {"model.margin": margin(model__head=("cosine",)), "model.head": HEAD},
            "its condition names model.head, which comes later; list model.head before model.margin",
        ),
        ({"model.margin": margin(model__margin=(0.0,))}, "its condition names itself; name another field"),
        (
            {"model.head": HEAD, "model.margin": margin(model__head=("cosin",))},
            "model.head='cosin': input should be 'linear', 'cosine' or 'angular'; change that value",
        ),
        (
            {"model.head": HEAD, "model.margin": margin(model__head=("angular",))},
            "never exists, as model.head in [angular] never holds; drop it, or its `when`",
        ),
        (
            {"model.margin": margin(model__head=("cosine", "angular"))},  # and the base's is linear
            "never exists, as model.head in [cosine, angular] never holds; drop it, or its `when`",
        ),
    ],
)
def test_a_condition_that_cannot_be_is_refused(dimensions: dict[str, Dimension], problem: str) -> None:
    assert refusal(dimensions) == f"sweep space, model.margin: {problem}"


def test_conditions_that_exclude_each_other_are_refused() -> None:
    dimensions = {
        "loss.slerp": Dimension(choices=(True, False)),
        "model.head": Dimension(choices=("linear", "cosine"), when={"loss.slerp": (True,)}),
        "model.margin": margin(model__head=("cosine",), loss__slerp=(False,)),
    }
    problem = (
        "never exists, as model.head in [cosine] and loss.slerp in [False] never holds; drop it, or"
        " its `when`"
    )
    assert refusal(dimensions) == f"sweep space, model.margin: {problem}"


# Settings

REMEDY = "; narrow the ranges or change the base config so that all settings are valid"


def test_an_end_that_contradicts_the_base_is_refused() -> None:
    assert refusal({"optim.lr": Dimension(low=1e-6, high=1e-3, log=True)}) == (
        "sweep space: it holds a setting that no run takes, optim.lr=1e-06 (optim.min_lr=5e-05: above"
        " optim.lr=1e-06; set --optim.min_lr 1e-06 or lower)" + REMEDY
    )


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    assert refusal({"optim.warmup_epochs": Dimension(low=0, high=10)}) == (
        "sweep space: it holds a setting that no run takes, optim.warmup_epochs=10.0"
        " (optim.warmup_epochs=10.0: not less than optim.epochs=10; shorten the warm-up, as with"
        " --optim.warmup_epochs 0)" + REMEDY
    )


def test_a_margin_without_its_condition_is_refused() -> None:
    message = refusal({"model.head": HEAD, "model.margin": margin()})
    assert "model.head=linear" in message
    assert "model.margin=0.5: a linear head has no margin" in message


def test_values_that_only_together_are_bad_are_found() -> None:
    message = refusal(
        {
            "loss.uniformity": Dimension(low=0, high=1),  # of no matter here, so not shown
            "loss.slerp_low": Dimension(low=0, high=0.9),
            "loss.slerp_high": Dimension(low=0.5, high=1),
        },
        BASE.replace({"loss.slerp_low": 0.2}),
    )
    assert message.startswith("sweep space: it holds a setting that no run takes, loss.slerp_low=0.")
    assert ", loss.slerp_high=0." in message
    assert "loss.uniformity" not in message


def test_a_batch_that_the_workers_do_not_divide_is_refused() -> None:
    base = RECIPES["demo"]()
    message = refusal({"data.global_batch": Dimension(choices=(32, 50))}, base)
    assert "data.global_batch=50: not divisible by run.workers=2" in message


def test_ends_under_a_condition_are_checked_where_it_holds() -> None:
    dimensions = {
        "optim.schedule": Dimension(choices=("constant", "cosine")),
        "optim.lr": Dimension(low=1e-6, high=1e-3, log=True, when={"optim.schedule": ("cosine",)}),
    }
    base = BASE.replace({"optim.schedule": "constant"})
    assert "optim.min_lr=5e-05: above optim.lr=1e-06" in refusal(dimensions, base)
    dimensions["optim.lr"] = Dimension(low=1e-6, high=1e-3, log=True, when={"optim.schedule": ("constant",)})
    check_space(Space(dimensions=dimensions), base)


def test_a_base_whose_margin_contradicts_a_chosen_head_is_no_mistake() -> None:
    base = BASE.replace({"model.head": "cosine", "model.margin": 0.2})
    check_space(Space(dimensions={"model.head": HEAD, "model.margin": margin(model__head=("cosine",))}), base)


def test_a_head_that_contradicts_a_margin_that_is_not_searched_is_refused() -> None:
    base = BASE.replace({"model.head": "cosine", "model.margin": 0.2})
    message = refusal({"model.head": HEAD}, base)
    assert "model.head=linear (model.margin=0.2: a linear head has no margin" in message


@pytest.mark.parametrize(
    "dimensions",
    [
        {"tuning.lora_rank": Dimension(low=4, high=16, integer=True, step=4)},
        {"tuning.lora_rank": Dimension(low=1, high=256, integer=True, log=True)},
        {"optim.lr": Dimension(low=1e-4, high=1, log=True)},
        {"loss.label_smoothing": Dimension(choices=(0.0, 0.1))},
        {"loss.label_smoothing": Dimension(choices=(0, 0.1))},
        {"engine.precision": Dimension(choices=("bf16", "fp32"))},
        {
            "model.margin": Dimension(low=0.2, high=0.5, when={"model.head": ("cosine",)}),
            "loss.slerp": Dimension(choices=(True, False)),
        },
    ],
)
def test_a_good_space_passes(dimensions: dict[str, Dimension]) -> None:
    check_space(Space(dimensions=dimensions), BASE.replace({"model.head": "cosine"}))
