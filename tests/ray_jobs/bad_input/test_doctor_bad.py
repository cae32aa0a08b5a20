"""Bad input to the doctor: what is no configuration ends with code 2, what would not run with code 1."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ray_jobs.doctor import main
from tests.ray_jobs.bad_input.asked import Refuse, arguments


@pytest.fixture(name="main")
def job():
    return main


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gendd"]) == 2
    assert capsys.readouterr().err.startswith("error: recipe 'gendd': unknown; did you mean gend?")


def test_an_unknown_field(refuse: Refuse) -> None:
    assert refuse("--optim.l", "1") == "--optim.l: no such field; did you mean --optim.lr?"


def test_a_wait_that_is_none(refuse: Refuse) -> None:
    assert refuse("--timeout", "0") == "timeout=0.0: input should be greater than 0"


def test_a_global_batch_that_does_not_divide(refuse: Refuse) -> None:
    assert refuse("--data.global_batch", "15").startswith("data.global_batch=15: not divisible by")


def test_a_recipe_without_a_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gend"]) == 2
    assert capsys.readouterr().err == (
        "error: data.train is empty: no training set to look at; give --data.train SET.json\n"
    )


def test_a_cache_behind_a_url(refuse: Refuse) -> None:
    assert refuse("--data.cache_dir", "s3://bucket/cache").startswith("data.cache_dir=s3://bucket/cache: not")


def test_a_head_that_does_not_answer_is_a_row_and_code_1(
    sets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        told = tmp_path / "told.json"
        assert main([*arguments(sets, tmp_path / "runs"), "--json_file", str(told)]) == 1
    printed = capsys.readouterr().out
    assert "unset RAY_ADDRESS to use this machine" in printed
    assert printed.endswith("demo would not run here: 0 ok, 0 warn, 1 FAIL\n")
    (row,) = json.loads(told.read_text())
    assert row["state"] == "FAIL"
    assert row["found"].startswith(f"RAY_ADDRESS={address}: no Ray answers there")
