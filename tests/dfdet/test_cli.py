"""The command line: every field is a flag with help, and every mistake is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfdet.cli import field_paths, parse
from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv, prog="train.py")
    assert len(str(caught.value).splitlines()) == 1
    assert not re.search("[─╭╮╰╯│]", str(caught.value))
    return str(caught.value)


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse([*argv, "--help"], prog="train.py")
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(RECIPES["gend"]().replace({"optim.lr": 1e-3, "data.val": ("v=a.json",)}).to_json())
    return path


def test_field_paths_are_those_of_the_tree() -> None:
    paths = field_paths()
    assert (paths[0], len(paths)) == ("run.recipe", len(set(paths)))
    assert {"data.augment.flip", "optim.lr", "eval.batch"} < set(paths)
    assert not {"data.augment", "optim"} & set(paths)


@pytest.mark.parametrize("name", RECIPES)
def test_the_help_of_a_recipe_shows_every_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(capsys, name)
    assert [path for path in field_paths() if f"--{path} " not in shown] == []


def test_the_help_shows_unit_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(help_of(capsys, "gend").replace("│", " ").split())
    assert "Peak learning rate (per step). (default: 0.0003)" in shown
    assert "Side of the model's input (pixels). (default: 224)" in shown


def test_the_help_of_a_saved_config_shows_its_values(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(help_of(capsys, "--config", str(saved)).replace("│", " ").split())
    assert "Peak learning rate (per step). (default: 0.001)" in shown


def test_the_help_without_a_recipe_tells_of_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(help_of(capsys).replace("│", " ").split())
    assert [name for name in RECIPES if f"• {name} " not in shown] == []
    assert "as in paper; features" in shown


def test_the_help_has_no_sphinx_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ((), *((name,) for name in RECIPES)):
        assert not re.search(r":[a-z]+:`|``", help_of(capsys, *argv))


def test_no_argument_means_demo() -> None:
    assert parse([], prog="train.py") == RECIPES["demo"]()


def test_flags_alone_mean_demo() -> None:
    assert parse(["--optim.lr", "0.5"], prog="train.py") == RECIPES["demo"]().replace({"optim.lr": 0.5})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_alone_is_that_recipe(name: str) -> None:
    assert parse([name], prog="train.py") == RECIPES[name]()


def test_flags_change_the_fields_that_they_name() -> None:
    argv = ["gend", "--optim.lr", "1e-3", "--data.train", "a.json", "b.json", "--data.val=v=c.json"]
    wanted = {"optim.lr": 1e-3, "data.train": ("a.json", "b.json"), "data.val": ("v=c.json",)}
    assert parse(argv, prog="train.py") == RECIPES["gend"]().replace(wanted)


def test_a_boolean_takes_its_value_like_any_field() -> None:
    config = parse(["demo", "--data.mix_crops", "True", "--engine.dry_batch", "False"], prog="train.py")
    assert (config.data.mix_crops, config.engine.dry_batch) == (True, False)


def test_none_switches_an_optional_field_off() -> None:
    assert parse(["gend", "--model.pretrained", "None"], prog="train.py").model.pretrained is None


def test_dashes_do_for_underscores() -> None:
    assert parse(["demo", "--data.global-batch", "32"], prog="train.py").data.global_batch == 32


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    assert message("papr") == (
        "recipe 'papr': unknown; did you mean paper?"
        " there are demo, linear_probe, ln, ln_norm, paper, gend, temporal"
    )


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--optim.l", "--optim.lr"),
        ("--optm.lrr", "--optim.lr"),
        ("--lr", "--optim.lr"),
        ("--epochs", "--optim.epochs"),
        ("--data.globalbatch", "--data.global_batch"),
        ("--data.augment.strenght", "--data.augment.strength"),
        ("--loss.no_slerp", "--loss.slerp"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag: str, nearest: str) -> None:
    assert message("gend", flag, "1") == f"{flag}: no such field; did you mean {nearest}?"


def test_an_unknown_flag_with_its_value_attached_names_the_nearest() -> None:
    assert message("--optim.l=3") == "--optim.l: no such field; did you mean --optim.lr?"


def test_an_unknown_flag_far_from_all_points_to_the_help() -> None:
    assert message("gend", "--qqqq", "1") == "--qqqq: no such field; see --help for all fields"


def test_a_word_too_many_is_named() -> None:
    assert "extra" in message("demo", "extra")


def test_a_bad_value_is_named_with_its_flag() -> None:
    said = message("gend", "--optim.lr", "fast")
    assert "--optim.lr" in said
    assert "'fast'" in said


def test_a_bad_choice_is_named_with_the_choices() -> None:
    said = message("gend", "--optim.schedule", "step")
    assert "'step'" in said
    assert "'--optim.schedule'" in said
    assert "('cosine', 'restarts', 'constant')" in said


def test_a_missing_value_is_named() -> None:
    assert "'--optim.lr'" in message("gend", "--optim.lr")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--optim.lr", "5"), "optim.lr=5.0: input should be less than or equal to 1"),
        (("--data.augment.flip", "2"), "data.augment.flip=2.0: input should be less than or equal to 1"),
        (("--run.workers", "0"), "run.workers=0: input should be greater than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(argv: tuple[str, ...], says: str) -> None:
    assert message("gend", *argv) == says


def test_an_impossible_combination_names_the_remedy() -> None:
    assert message("gend", "--run.workers", "3") == (
        "data.global_batch=128: not divisible by run.workers=3; set --data.global_batch 126"
    )


def test_a_saved_config_is_read_as_it_was(saved: Path) -> None:
    config = parse(["--config", str(saved)], prog="train.py")
    assert config == RECIPES["gend"]().replace({"optim.lr": 1e-3, "data.val": ("v=a.json",)})


def test_a_config_of_every_recipe_comes_back(tmp_path: Path) -> None:
    for name, recipe in RECIPES.items():
        (tmp_path / f"{name}.json").write_text(recipe().to_json())
        assert parse([f"--config={tmp_path / name}.json"], prog="train.py") == recipe()


def test_flags_after_a_saved_config_override_it(saved: Path) -> None:
    config = parse(["--config", str(saved), "--optim.epochs", "3"], prog="train.py")
    assert (config.optim.epochs, config.optim.lr, config.run.recipe) == (3, 1e-3, "gend")


def test_a_mistake_after_a_saved_config_is_one_line_too(saved: Path) -> None:
    assert message("--config", str(saved), "--optim.l", "1").endswith("did you mean --optim.lr?")
    assert message("--config", str(saved), "--run.workers", "3").startswith("data.global_batch=128: ")


def test_config_after_a_recipe_says_where_it_goes() -> None:
    assert message("gend", "--config", "x.json").startswith("--config: give it first")


@pytest.mark.parametrize("argv", [("--config",), ("--config", "--optim.lr", "1"), ("--config=",)])
def test_config_without_a_path_is_refused(argv: tuple[str, ...]) -> None:
    assert message(*argv) == "--config: give the path of a run's config.json"


def test_a_config_that_is_missing_is_named(tmp_path: Path) -> None:
    said = message("--config", str(tmp_path / "none.json"))
    assert said.startswith(f"--config {tmp_path / 'none.json'}: cannot be read as JSON")
    assert "No such file" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no configuration"),
        ('{"optim": {"lr": 7}}', "optim.lr=7: input should be less than or equal to 1"),
        ('{"optim": {"speed": 7}}', "optim.speed: no such field"),
    ],
)
def test_a_config_that_is_invalid_says_where(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    assert says in message("--config", str(tmp_path / "c.json"))


def test_a_parsed_config_is_a_config() -> None:
    assert isinstance(parse(["paper"], prog="train.py"), Config)
