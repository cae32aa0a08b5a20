"""URLs where a folder is meant: one line, and no folder named `s3:`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

OUT = ["--out", "s3://bucket/x"]


@pytest.mark.parametrize(
    ("job", "argv"),
    [
        ("ray_jobs.shard", ["--dataset", "ffpp", "--root", "raw", *OUT]),
        ("ray_jobs.evaluate", ["--checkpoint", "runs/NAME", "--test", "t=set.json", *OUT]),
        ("ray_jobs.export", ["--checkpoint", "runs/NAME", *OUT]),
        ("ray_jobs.predict", ["--checkpoint", "runs/NAME", "clip.mp4", *OUT]),
        ("shards.__main__", ["demo", *OUT]),
    ],
)
def test_a_url_to_write_to_is_refused(job: str, argv: list[str], capsys: pytest.CaptureFixture) -> None:
    assert importlib.import_module(job).main(argv) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --out s3://bucket/x: is written to a folder; give a path")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [["demo", "--run.storage", "s3://bucket/x"], ["--resume", "NAME", "--run.storage", "s3://bucket/x"]],
)
def test_a_sweep_behind_a_url_is_refused(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    assert importlib.import_module("ray_jobs.tune").main(argv) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: run.storage=s3://bucket/x: a sweep's study needs a filesystem")
    assert list(Path.cwd().iterdir()) == []
