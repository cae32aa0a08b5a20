"""Bad input to a sweep; see conftest for what is expected of every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs.tune import main
from tests.ray_jobs.bad_input.asked import Refuse

Space = Callable[[str], str]


@pytest.fixture(name="main")
def job():
    return main


@pytest.fixture
def space(tmp_path: Path) -> Space:
    """Writes a space, gives its path."""

    def written(text: str) -> str:
        (tmp_path / "space.yaml").write_text(text)
        return str(tmp_path / "space.yaml")

    return written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss.unifrmity: {low: 0, high: 1}", "did you mean loss.uniformity?"),
        ("optim.lr: {low: 0.1, high: 5}", "optim.lr"),
        ("run.workers: {low: 1, high: 2, integer: true}", "run.workers"),
        ("loss.uniformity: {low: 1, high: 0}", "swap them"),
        ("data.crop_scale: {low: 1, high: 2}", "2 is wider than the crops of the sets, 1.6; end it there"),
    ],
)
def test_a_space_that_no_run_takes(text: str, said: str, refuse: Refuse, space: Space) -> None:
    assert said in refuse("--space", space(f"dimensions:\n  {text}\n"))


def test_a_space_that_is_no_yaml(refuse: Refuse, space: Space) -> None:
    path = space("dimensions: [")
    assert path in refuse("--space", path)


def test_a_space_that_is_not_there(refuse: Refuse, tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refuse("--space", str(tmp_path / "none.yaml"))


def test_more_settings_side_by_side_than_fit(refuse: Refuse) -> None:
    assert refuse("--concurrent", "9") == (
        "--concurrent 9: 9 settings x 2 workers x 1 CPU (of 2) do not fit; set --concurrent 1, or fewer"
        " --run.workers"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "trials"),
        (["--reduction", "1"], "reduction"),
        (["--trails", "9"], "did you mean --trials?"),
        (["--sampler", "tpee"], "sampler"),
        (["--sampler", "grid"], "grid"),
        (["--sampler", "cmaes"], "cmaes"),
        (["--objective", "val/nix/video/auroc"], "val/nix/video/auroc"),
        (["--objective", "test/t/video/auroc"], "test/t/video/auroc"),
        (["--objective", "val/v/video/auroc", "perf/step_s:min"], "--pruner none"),
        (["--study", "mysql://host/name"], "mysql"),
        (["--study", "sqlite:///none/study.db"], "none/study.db"),
        (["--run.workers", "1", "2"], "give one number"),
    ],
)
def test_a_budget_a_sampler_an_objective_or_a_storage_that_cannot_be(
    more: list[str], said: str, refuse: Refuse
) -> None:
    assert said in refuse(*more)


def test_a_password_in_the_url_of_a_study_is_not_shown(refuse: Refuse) -> None:
    assert "secret" not in refuse("--study", "postgresql://user:secret@host/name")


def test_a_set_that_is_not_there(refuse: Refuse, tmp_path: Path) -> None:
    assert "no such manifest" in refuse("--data.val", f"v={tmp_path}/none.json")


def test_storage_that_cannot_be_written(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refuse("--run.storage", str(tmp_path / "file" / "runs"))
    assert "cannot be written (Not a directory); give a writable --run.storage" in said


def test_a_sweep_to_resume_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--resume", "none", "--run.storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --resume none: there is no sweep of this name")
    assert said.count("\n") == 1
