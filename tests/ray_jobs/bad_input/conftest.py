"""Bad input ends before Ray starts: exit code 2, one line, and no run folder left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from ray_jobs import cluster
from tests.ray_jobs.bad_input.asked import Refuse, arguments

Job = Callable[[list[str]], int]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores: more threads wait for each other, for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_ray_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "DFDET_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "logical_cpus", lambda: 2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Gives the line that a job was refused with, and sees that it is one and that Ray was not started."""

    def line() -> str:
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        assert not ray.is_initialized()
        return printed

    return line


@pytest.fixture
def sets(signal_sets: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of the sets, to be spoilt."""
    folder = tmp_path / "sets"
    shutil.copytree(signal_sets["train"].parent, folder)
    return {split: folder / path.name for split, path in signal_sets.items()}


@pytest.fixture
def refuse(main: Job, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """As :data:`~tests.ray_jobs.bad_input.asked.Refuse`, in the agreed form: one line, and nothing left."""

    def refused(*more: str, begun: bool = False) -> str:
        start = time.monotonic()
        code = main([*arguments(sets, tmp_path / "runs"), *more])
        took = time.monotonic() - start
        printed = capsys.readouterr()
        assert code == 2
        assert not ray.is_initialized()
        assert took < 60
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert printed.err.endswith("\n")
        assert "run folder:" not in printed.out
        assert begun or not (tmp_path / "runs").exists()
        assert list((tmp_path / "here").iterdir()) == []
        return printed.err.removeprefix("error: ").strip()

    return refused
