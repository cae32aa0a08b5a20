"""Bad input to an evaluation and to the paper's table: exit code 2, one line, nothing left, no Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs import evaluate, reproduce


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--test", "t"], "give NAME=SET.json"),
        (["--robustness", "jepg"], "no such corruption"),
        (["--aggregate", "men"], "give mean, median, max"),
        (["--workers", "9"], "each takes 1 CPU, but Ray has 2 CPU; set --workers 2"),
        (["--crop_scale", "1.7"], "larger than the stored crop scale 1.6"),
        (["--checkpoint", "nowhere"], "neither a checkpoint"),
        (["--cache_dir", "s3://bucket/cache"], "not a local folder"),
        (["--bach", "3"], "--bach"),
    ],
)
def test_an_evaluation_is_refused(
    more: list[str], expected: str, said, trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--checkpoint", str(trained_run), "--test", f"t={signal_sets['test']}", "--out", str(out)]
    assert evaluate.main([*given, *more]) == 2
    assert expected in said()
    assert not out.exists()


def test_an_evaluation_needs_a_checkpoint(said, signal_sets: dict[str, Path]) -> None:
    assert evaluate.main(["--test", f"t={signal_sets['test']}"]) == 2
    assert "--checkpoint" in said()


def test_an_evaluation_that_cannot_be_written(
    said, trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    given = ["--checkpoint", str(trained_run), "--test", f"t={signal_sets['test']}"]
    assert evaluate.main([*given, "--out", str(tmp_path / "file/out")]) == 2
    assert "cannot be written (Not a directory); give a writable folder" in said()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--rows", "lnn"], "lnn"),
        (["--seeds", "0"], "seeds"),
        (["--optim.l", "1"], "did you mean --optim.lr?"),
        (["--run.name", "x"], "--run.name: set by --shards and --out here"),
        (["--data.global_batch", "0"], "data.global_batch"),
    ],
)
def test_a_table_is_refused(
    more: list[str], expected: str, said, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    given = ["--shards", str(signal_sets["train"].parent), "--out", str(tmp_path / "out")]
    assert reproduce.main([*given, *more]) == 2
    assert expected in said()
    assert not (tmp_path / "out").exists()
