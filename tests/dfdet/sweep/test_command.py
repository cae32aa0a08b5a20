import json
from pathlib import Path

import pytest

from dfdet.errors import ConfigError
from dfdet.recipes import demo
from dfdet.sweep import command
from dfdet.sweep.command import Record
from dfdet.sweep.options import Options
from dfdet.sweep.space.defaults import default_space


def parse(text: str) -> command.Command:
    return command.parse(text.split(), "tune.py")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    config = demo().replace({"run.name": "s", "run.storage": str(tmp_path)})
    folder = tmp_path / "s"
    folder.mkdir()
    record = Record(config=config, options=Options(trials=8, seeds=2), space=default_space(config))
    command.write(folder, record)
    return folder


def test_flags_without_a_dot_are_the_sweeps_and_the_others_the_configs() -> None:
    asked = parse(
        "demo --trials 16 --optim.epochs 3 --concurrent=2 --objective val/demo/video/ap perf/step_s"
    )
    assert (asked.options.trials, asked.options.concurrent) == (16, 2)
    assert asked.options.objective == ("val/demo/video/ap", "perf/step_s")
    assert asked.config is not None
    assert asked.config.optim.epochs == 3


def test_a_sweep_may_start_from_a_saved_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(demo().replace({"optim.epochs": 7}).to_json())
    asked = command.parse(["--config", str(path), "--trials", "3"], "tune.py")
    assert asked.config is not None
    assert asked.config.optim.epochs == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demo --trails 3", "--trails: no such flag; did you mean --trials?"),
        ("demo --trials 0", "trials=0: input should be greater than or equal to 1"),
        ("demo --pruner never", "invalid choice 'never'"),
        ("demo --optim.lrr 3", "--optim.lrr: no such"),
        ("nix --trials 3", "nix"),
        ("--resume", "--resume: give it a value"),
        ("--resume s --optim.lr 0.1", "--optim.lr: a resumed sweep keeps its config"),
    ],
)
def test_what_is_wrong_is_named(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_resume_keeps_the_options_that_it_does_not_name(sweep: Path) -> None:
    asked = parse(f"--resume s --trials 32 --run.storage {sweep.parent}")
    assert (asked.resume, asked.storage) == ("s", str(sweep.parent))
    record = command.resumed(asked, sweep, "tune.py")
    assert (record.options.trials, record.options.seeds) == (32, 2)
    assert record.space == default_space(record.config)


def test_a_sweep_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume nix: there is no sweep of this name in"):
        command.read(tmp_path / "nix")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 1})])
def test_a_damaged_record_is_one_line(sweep: Path, text: str) -> None:
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.json: ") as error:
        command.read(sweep)
    assert "\n" not in str(error.value)
