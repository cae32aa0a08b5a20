"""The configuration tree: exact round trips, and every mistake one line with its remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dfdet.config import Config, Section, from_dict, from_json, named_sets
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES


def sections(kind: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(prefix.rstrip("."), kind)]
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sections(field.annotation, f"{prefix}{name}.")
    return found


FIELDS = [
    (f"{prefix}.{name}", field.description)
    for prefix, kind in sections()
    if prefix
    for name, field in kind.model_fields.items()
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
]


def message(values: dict[str, Any], base: Config | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        (base or Config()).replace(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_json_gives_an_equal_config(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    (tmp_path / "config.json").write_text(config.to_json())
    assert from_json(tmp_path / "config.json") == config


def test_json_keeps_values_that_are_not_the_defaults(tmp_path: Path) -> None:
    config = Config().replace(
        {
            "data.val": ("a=x.json", "b=y.json"),
            "data.augment.strength": 0.25,
            "optim.betas": (0.8, 0.95),
            "run.seed": 2**63 - 1,
        }
    )
    (tmp_path / "config.json").write_text(config.to_json())
    again = from_json(tmp_path / "config.json")
    assert again == config
    assert (again.data.val, again.optim.betas) == (("a=x.json", "b=y.json"), (0.8, 0.95))
    assert (again.data.augment.strength, again.run.seed) == (0.25, 2**63 - 1)


def test_replace_sets_the_given_paths_and_nothing_else() -> None:
    before = Config()
    after = before.replace({"optim.lr": 1e-3, "data.augment.flip": 0.0})
    assert (after.optim.lr, after.data.augment.flip) == (1e-3, 0.0)
    assert after.replace({"optim.lr": before.optim.lr, "data.augment.flip": 0.5}) == before


def test_replace_leaves_the_original_as_it_was() -> None:
    config = Config()
    config.replace({"optim.lr": 1e-3})
    assert config.optim.lr == 3e-4


@pytest.mark.parametrize("path", ["optim.lrr", "optm.lr", "lr", "optim.lr.deep", "", "data.augment.x"])
def test_replace_refuses_an_unknown_field(path: str) -> None:
    assert message({path: 1}).startswith(f"{path}: no such field")


def test_an_unknown_field_of_a_file_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^optim\.speed: no such field"):
        from_dict({"optim": {"speed": 3}})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("optim.lr", 2.0, "optim.lr=2.0: input should be less than or equal to 1"),
        ("optim.lr", 0.0, "optim.lr=0.0: input should be greater than 0"),
        ("run.workers", 0, "run.workers=0: input should be greater than or equal to 1"),
        ("run.seed", 2**63, f"run.seed={2**63}: input should be less than {2**63}"),
        ("model.image_size", 15, "model.image_size=15: input should be greater than or equal to 16"),
        ("data.augment.flip", 1.5, "data.augment.flip=1.5: input should be less than or equal to 1"),
        ("optim.weight_decay", float("nan"), "optim.weight_decay=nan: input should be a finite number"),
        ("run.name", "../up", "run.name='../up': string should match pattern"),
        ("model.head", "cos", "model.head='cos': input should be 'linear', 'cosine' or 'angular'"),
        ("optim.epochs", "many", "optim.epochs='many': input should be a valid integer"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_path_value_and_cause(path: str, value: Any, says: str) -> None:
    assert message({path: value}).startswith(says)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "workers": (
        {"data.global_batch": 64, "run.workers": 3},
        "data.global_batch=64: not divisible by run.workers=3; set --data.global_batch 63",
        {"data.global_batch": 63},
    ),
    "pairs": (
        {"data.global_batch": 9, "data.sampling": "pair", "run.workers": 2},
        "data.global_batch=9: not divisible by run.workers=2 x 2"
        " (data.sampling=pair keeps pairs on one rank); set --data.global_batch 8",
        {"data.global_batch": 8},
    ),
    "small batch": (
        {"data.global_batch": 2, "run.workers": 4},
        "data.global_batch=2: not divisible by run.workers=4; set --data.global_batch 4",
        {"data.global_batch": 4},
    ),
    "clips": (
        {"data.global_batch": 9, "data.sampling": "clip", "data.clip_frames": 3, "run.workers": 2},
        "data.global_batch=9: not divisible by run.workers=2 x 3"
        " (data.sampling=clip keeps clips on one rank); set --data.global_batch 6",
        {"data.global_batch": 6},
    ),
    "micro-batch of clips": (
        {"engine.micro_batch": 4, "data.sampling": "clip"},
        "engine.micro_batch=4: smaller than a clip (data.sampling=clip); set --engine.micro_batch 8",
        {"engine.micro_batch": 8},
    ),
    "temporal": (
        {"model.temporal": True},
        "model.temporal=True: needs clips, not data.sampling=single; set --data.sampling clip",
        {"data.sampling": "clip"},
    ),
    "consistency": (
        {"loss.consistency": 0.1, "data.sampling": "clip"},
        "loss.consistency=0.1: of frames with their clip, which only a temporal model scores;"
        " set --model.temporal True",
        {"model.temporal": True},
    ),
    "micro-batch": (
        {"engine.micro_batch": 1, "data.sampling": "rotate"},
        "engine.micro_batch=1: smaller than a pair (data.sampling=rotate); set --engine.micro_batch 2",
        {"engine.micro_batch": 2},
    ),
    "margin": (
        {"model.margin": 0.2},
        "model.margin=0.2: a linear head has no margin; set --model.head cosine or angular",
        {"model.head": "cosine"},
    ),
    "no loss": (
        {"loss.ce": 0.0},
        "loss.ce, loss.alignment and loss.uniformity are all 0: nothing to learn; set --loss.ce 1",
        {"loss.ce": 1},
    ),
    "slerp": (
        {"loss.slerp_low": 0.7, "loss.slerp_high": 0.2},
        "loss.slerp_low=0.7: above loss.slerp_high=0.2; swap them",
        {"loss.slerp_low": 0.2, "loss.slerp_high": 0.7},
    ),
    "min_lr": (
        {"optim.min_lr": 0.1, "optim.lr": 0.01},
        "optim.min_lr=0.1: above optim.lr=0.01; set --optim.min_lr 0.01 or lower",
        {"optim.min_lr": 0.01},
    ),
    "warm-up": (
        {"optim.warmup_epochs": 10.0},
        "optim.warmup_epochs=10.0: not less than optim.epochs=10; shorten the warm-up, as with"
        " --optim.warmup_epochs 0",
        {"optim.warmup_epochs": 0},
    ),
    "betas": (
        {"optim.betas": (0.9, 1.0)},
        "optim.betas=(0.9, 1.0): each must be in [0, 1); set --optim.betas 0.9 0.999",
        {"optim.betas": (0.9, 0.999)},
    ),
    "set without name": (
        {"data.val": ("set.json",)},
        "data.val='set.json': write NAME=SET.json, with a name of letters, digits, - and _",
        {"data.val": ("v=set.json",)},
    ),
    "name with a slash": (
        {"data.test": ("a/b=set.json",)},
        "data.test='a/b=set.json': write NAME=SET.json, with a name of letters, digits, - and _",
        {"data.test": ("a-b=set.json",)},
    ),
    "name twice": (
        {"data.test": ("t=a.json", "t=b.json")},
        "data.test: the name 't' is given twice; name each set once",
        {"data.test": ("t=a.json", "u=b.json")},
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_combination_is_one_line_with_its_remedy(case: str) -> None:
    values, says, _ = IMPOSSIBLE[case]
    assert message(values) == says


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_the_remedy_that_is_named_works(case: str) -> None:
    values, _, remedy = IMPOSSIBLE[case]
    config = Config().replace(values | remedy)
    assert config.replace({}) == config


def test_two_problems_are_told_in_one_line() -> None:
    said = message({"model.margin": 0.2, "loss.ce": 0.0})
    assert "model.margin=0.2" in said
    assert "nothing to learn" in said


def test_a_constant_schedule_does_not_look_at_the_lowest_rate() -> None:
    config = Config().replace({"optim.lr": 1e-6, "optim.schedule": "constant"})
    assert config.optim.min_lr > config.optim.lr


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read as JSON .*give a run's config\.json$"):
        from_json(tmp_path / "none.json")


def test_a_file_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no configuration"):
        from_json(tmp_path / "list.json")


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optim = config.optim  # type: ignore[misc]


def test_every_section_is_frozen_and_refuses_unknown_names() -> None:
    for _, kind in sections():
        assert issubclass(kind, Section)
        assert (kind.model_config["frozen"], kind.model_config["extra"]) == (True, "forbid")


@pytest.mark.parametrize(("path", "description"), FIELDS)
def test_every_field_says_what_it_is(path: str, description: str | None) -> None:
    assert description, path
    assert re.search(r"[.)]$", description.strip()), f"{path}: {description}"


def test_the_tree_has_all_its_sections() -> None:
    assert [prefix for prefix, _ in sections()] == [
        *("", "run", "data", "data.augment", "model", "tuning", "loss", "optim", "engine", "eval")
    ]


@pytest.mark.parametrize(
    ("values", "pairwise"),
    [
        ({}, False),
        ({"loss.slerp": True}, True),
        ({"loss.alignment": 0.1}, True),
        ({"loss.uniformity": 1}, True),
    ],
)
def test_a_loss_knows_whether_it_is_pairwise(values: dict[str, Any], pairwise: bool) -> None:
    assert Config().replace(values).loss.pairwise is pairwise


def test_named_sets_split_at_the_first_equals_sign() -> None:
    assert named_sets(("a=x.json", "b=dir=1/y.json")) == {"a": "x.json", "b": "dir=1/y.json"}
