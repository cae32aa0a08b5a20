"""A run's logs: lines to read, lines to search, and storages that take neither."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfdet.runs import runlog
from dfdet.runs.runlog import JsonConsole, JsonLog, RunLog, log_json, log_to

logger = logging.getLogger("dfdet.anything")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate)
        for name in runlog.PACKAGES
    }
    yield
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_says_when_where_and_of_which_run_it_is(tmp_path: Path) -> None:
    run = tmp_path / "gend-1"
    run.mkdir()
    log_to([JsonLog(run, "rank-3", 3)])
    logger.warning("skipped damaged sample %d:\n%s", 7, "naïve")
    [entry] = lines(run / "logs/rank-3.jsonl")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(entry.pop("time")))
    assert entry == {
        "level": "warning",
        "run": "gend-1",
        "trial": None,
        "rank": 3,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "logger": "dfdet.anything",
        "message": "skipped damaged sample 7:\nnaïve",
    }


def test_a_run_of_a_sweep_is_a_trial_of_it(tmp_path: Path) -> None:
    run = tmp_path / "search/0007-s1"
    run.mkdir(parents=True)
    (tmp_path / "search/sweep.json").touch()
    log_to([JsonLog(run, "rank-0", 0)])
    logger.info("step 1")
    [entry] = lines(run / "logs/rank-0.jsonl")
    assert (entry["run"], entry["trial"], entry["rank"]) == ("search", "0007-s1", 0)


def test_the_sweeps_record_has_the_name_that_is_looked_for() -> None:
    from dfdet.sweep.command import RECORD

    assert runlog.SWEEP == RECORD


def test_an_exception_is_a_field(tmp_path: Path) -> None:
    log_to([JsonLog(tmp_path, "driver")])
    try:
        raise ValueError("a bug")
    except ValueError:
        logger.exception("it failed")
    [entry] = lines(tmp_path / "logs/driver.jsonl")
    assert (entry["level"], entry["message"], entry["rank"]) == ("error", "it failed", None)
    assert str(entry["traceback"]).startswith("Traceback") and "ValueError: a bug" in str(entry["traceback"])


def test_an_error_that_other_logs_have_goes_to_the_json_lines_alone(tmp_path: Path) -> None:
    log_to([RunLog(tmp_path / "log.txt"), JsonLog(tmp_path, "rank-0", 0)])
    log_json("worker 0 failed", ValueError("a bug"))
    [entry] = lines(tmp_path / "logs/rank-0.jsonl")
    assert entry["message"] == "worker 0 failed" and "a bug" in str(entry["traceback"])
    assert (tmp_path / "log.txt").read_text() == ""


def test_a_console_has_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.StringIO()
    monkeypatch.setattr("sys.stderr", console)
    log_to([JsonConsole(tmp_path, 2)])
    logger.info("step 1")
    entry = json.loads(console.getvalue())
    assert (entry["message"], entry["rank"], entry["run"]) == ("step 1", 2, tmp_path.name)


def test_a_process_that_says_nothing_leaves_no_file(tmp_path: Path) -> None:
    log_to([JsonLog(tmp_path, "rank-1", 1)])
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_away_ends_nothing_and_is_not_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "away"
    log_to([JsonLog(run, "rank-0", 0)])
    logger.info("lost")
    assert not run.exists()
    run.mkdir()
    logger.info("kept")
    assert [entry["message"] for entry in lines(run / "logs/rank-0.jsonl")] == ["kept"]
    assert capsys.readouterr().err == ""


def test_a_full_storage_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-0.jsonl").symlink_to("/dev/full")
    log_to([JsonLog(tmp_path, "rank-0", 0)])
    logger.info("lost")
    assert capsys.readouterr().err == ""
