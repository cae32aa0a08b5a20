"""Spaces from YAML: narrowed and replaced, and each mistake one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES
from dfdet.sweep.space.checks import check_space
from dfdet.sweep.space.defaults import default_space
from dfdet.sweep.space.file import read_space
from dfdet.sweep.space.space import Dimension, Space

BASE = RECIPES["paper"]()
DEFAULT = default_space(BASE)


def read(text: str, folder: Path, base: Config = BASE) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(path, default_space(base), base)


def refusal(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--space {folder / 'space.yaml'}: ")
    return message.removeprefix(f"--space {folder / 'space.yaml'}: ")


# What a file says


def test_a_narrowed_range_keeps_what_it_does_not_say(tmp_path: Path) -> None:
    space = read("dimensions: {optim.lr: {high: 1e-4}, model.scale: {low: 16}}", tmp_path)
    lr, scale = space.dimensions["optim.lr"], space.dimensions["model.scale"]
    assert (lr.range, lr.log) == ((5e-5, 1e-4), True)
    assert (scale.range, scale.when) == ((16.0, 64.0), DEFAULT.dimensions["model.scale"].when)
    others = DEFAULT.dimensions.keys() - {"optim.lr", "model.scale"}
    assert {path: space.dimensions[path] for path in others} == {
        path: DEFAULT.dimensions[path] for path in others
    }
    assert list(space.dimensions) == list(DEFAULT.dimensions)


def test_replacing_searches_only_what_the_file_lists(tmp_path: Path) -> None:
    space = read("{replace: true, dimensions: {loss.uniformity: {low: 0, high: 1}}}", tmp_path)
    assert space == Space(dimensions={"loss.uniformity": Dimension(low=0, high=1)})


def test_null_drops_a_dimension(tmp_path: Path) -> None:
    space = read("dimensions: {optim.lr: null}", tmp_path)
    assert list(space.dimensions) == [path for path in DEFAULT.dimensions if path != "optim.lr"]


def test_a_list_gives_choices_in_place_of_a_range(tmp_path: Path) -> None:
    space = read("dimensions: {model.margin: [0, 0.2, 0.35]}", tmp_path)
    margin = space.dimensions["model.margin"]
    assert margin == Dimension(choices=(0.0, 0.2, 0.35), when=DEFAULT.dimensions["model.margin"].when)


def test_a_range_takes_the_place_of_choices(tmp_path: Path) -> None:
    default = Space(dimensions={"loss.uniformity": Dimension(choices=(0.0, 0.5))})
    (tmp_path / "space.yaml").write_text("dimensions: {loss.uniformity: {low: 0, high: 1}}")
    space = read_space(tmp_path / "space.yaml", default, BASE)
    assert space.dimensions["loss.uniformity"] == Dimension(low=0, high=1)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    space = read("dimensions: {optim.lr: [6e-5, 1e-4], loss.uniformity: {low: 1e-3, high: 1}}", tmp_path)
    assert space.dimensions["optim.lr"].choices == (6e-5, 1e-4)
    assert space.dimensions["loss.uniformity"].low == 1e-3


def test_a_range_of_an_integer_field_is_of_integers(tmp_path: Path) -> None:
    space = read("dimensions: {tuning.lora_rank: {low: 4, high: 16}}", tmp_path)
    assert space.dimensions["tuning.lora_rank"] == Dimension(low=4, high=16, integer=True)


def test_a_condition_may_name_one_value_and_a_dimension_that_comes_later(tmp_path: Path) -> None:
    text = """
    dimensions:
      tuning.lora_rank: {low: 4, high: 16, when: {tuning.mode: lora}}
      tuning.mode: [ln, lora]
    """
    space = read(text, tmp_path)
    assert space.dimensions["tuning.lora_rank"].when == {"tuning.mode": ("lora",)}
    assert list(space.dimensions)[-2:] == ["tuning.mode", "tuning.lora_rank"]
    check_space(space, BASE)


def test_without_a_margin_head_margin_and_scale_go(tmp_path: Path) -> None:
    for entry in ("null", "[linear]"):
        space = read(f"dimensions: {{model.head: {entry}}}", tmp_path)
        assert not {"model.margin", "model.scale"} & space.dimensions.keys()


def test_with_margin_heads_only_the_space_is_conditional_no_longer(tmp_path: Path) -> None:
    space = read("dimensions: {model.head: [cosine, angular], loss.slerp: null}", tmp_path)
    assert {"model.margin", "loss.slerp_low"} <= space.dimensions.keys()  # the paper's base has slerp
    assert not space.conditional
    check_space(space, BASE)


def test_a_dropped_head_leaves_the_bases_margin_to_be_searched(tmp_path: Path) -> None:
    base = BASE.replace({"model.head": "angular"})
    space = read("dimensions: {model.head: null}", tmp_path, base)
    assert space.dimensions["model.margin"].when == {}
    check_space(space, base)


# Mistakes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "loss.uniformity: {low: 0, high: 1}",
            "no mapping `dimensions`; write dimensions: {loss.uniformity: {low: 0, high: 1}}",
        ),
        ("", "no mapping `dimensions`; write dimensions: {loss.uniformity: {low: 0, high: 1}}"),
        (
            "dimensions: [loss.uniformity]",
            "no mapping `dimensions`; write dimensions: {loss.uniformity: {low: 0, high: 1}}",
        ),
        ("{dimensions: {}, replaces: true}", "unknown key 'replaces'; there are replace and dimensions"),
        ("{dimensions: {}, replace: 1}", "replace=1: neither true nor false; write one of them"),
        (
            "dimensions: {optim.lr: 0.1}",
            "optim.lr=0.1: no dimension; write {low: 0, high: 1}, [a, b], or null",
        ),
        (
            "dimensions: {optim.lr: {lo: 0.1}}",
            "optim.lr: unknown key 'lo'; there are low, high, log, step, integer, choices, when",
        ),
        (
            "dimensions: {optim.lr: {low: small}}",
            "optim.lr.low='small': input should be a valid number, unable to parse string as a"
            " number; correct it",
        ),
        (
            "dimensions: {optim.lr: {low: .inf}}",
            "optim.lr.low=inf: input should be a finite number; correct it",
        ),
        (
            "dimensions: {optim.lr: {when: cosine}}",
            "optim.lr.when='cosine': input should be a valid dictionary; correct it",
        ),
        (
            "{replace: true, dimensions: {optim.lr: null}}",
            "optim.lr: null drops a dimension, and this one is not there; there is nothing, as"
            " replace is true",
        ),
    ],
)
def test_a_file_of_a_bad_form_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path) == problem


def test_dropping_what_is_not_there_lists_what_is(tmp_path: Path) -> None:
    message = refusal("dimensions: {loss.ce: null}", tmp_path)
    assert message.startswith(
        "loss.ce: null drops a dimension, and this one is not there; there is loss.uniformity, "
    )


def test_text_that_is_no_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    message = refusal("dimensions: {optim.lr: [1, 2}", tmp_path)
    assert message.startswith("no YAML (")
    assert "line 1, column 29" in message


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none\.yaml: cannot be read \(.*No such file.*; give a YAML file$"
    ):
        read_space(tmp_path / "none.yaml", DEFAULT, BASE)


def test_yaml_that_asks_for_an_object_is_not_made(tmp_path: Path) -> None:
    assert refusal("dimensions: !!python/object/apply:os.getcwd []", tmp_path).startswith("no YAML (")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("loss.uniformty: {low: 0, high: 1}", "loss.uniformty: no such field; did you mean loss.uniformity?"),
        ("loss: {low: 0, high: 1}", "loss: a section, not a field; name a field of it, as loss.ce"),
        (
            "loss.uniformity: {low: 0, log: true}",
            "loss.uniformity: low=0 has no logarithm; raise low above 0, or set log: false",
        ),
        (
            "loss.uniformity: [0.1, yes]",
            "loss.uniformity: loss.uniformity=True: the field would read it as 1.0; write 1.0",
        ),
        (
            "loss.uniformity: {low: 0, high: 1, when: {model.head: [cosin]}}",
            "loss.uniformity: model.head='cosin': input should be 'linear', 'cosine' or 'angular';"
            " change that value",
        ),
        (
            "model.head: [linear]\n  model.margin: {high: 0.3}",
            "model.margin: never exists, as model.head in [cosine, angular] never holds; drop it, or"
            " its `when`",
        ),
        (
            "run.seed: [1, 2]",
            "run.seed: not searched, since the best of several seeds is luck, not a setting; score"
            " every setting by --seeds",
        ),
        (
            "model.head: {when: {model.margin: [0.1]}}",
            "model.margin: its condition names model.head, which comes later; list model.head before"
            " model.margin",
        ),
    ],
)
def test_a_mistake_about_fields_reaches_the_checks(entry: str, problem: str, tmp_path: Path) -> None:
    space = read(f"dimensions:\n  {entry}\n", tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_space(space, BASE)
    assert str(caught.value) == f"sweep space, {problem}"
