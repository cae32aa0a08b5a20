"""The command that exports: what it prints, what a kill leaves, and that it is the same in any process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfdet.export.verify import verify
from ray_jobs import export
from tests.dfdet.export.bundles import tree

ROOT = Path(__file__).parents[2]


def begun(run: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, in the middle of its work."""
    command = [sys.executable, "ray_jobs/export.py", "--checkpoint", str(run), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("writing model.onnx"):
            return process
    raise AssertionError(f"ended with {process.wait()} before it wrote a graph")


def test_it_says_where_the_bundle_is(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DFDET_HOME", raising=False)
    assert export.main(["--checkpoint", str(trained_run), "--out", "here/bundle", "--crops", "20"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("model: tiny of run (")
    assert "\nthreshold: 0." in printed.out
    assert printed.out.endswith(f"bundle: {tmp_path / 'here' / 'bundle'}\n")
    assert "crops by model.onnx: 20 of 20" in printed.err
    assert verify(tmp_path / "here" / "bundle")[0].endswith("checksums agree")


def test_a_checkpoint_of_a_run_that_is_not_finished_can_be_named(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "result.json").unlink()
    step = max((run / "checkpoints").glob("step_*"))
    out = tmp_path / "out"
    given = ["--checkpoint", str(step), "--out", str(out), "--no-threshold", "--crops", "4"]
    assert export.main(given) == 0
    assert not (out / "threshold.json").exists()
    assert "of a run that did not choose it, or did not end" in (out / "MODEL_CARD.md").read_text()


def test_a_kill_leaves_no_bundle_and_the_next_export_is_as_if_there_had_been_none(
    trained_run: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    process = begun(trained_run, one)
    process.kill()
    process.communicate()
    assert not one.exists()
    assert len(list(tmp_path.iterdir())) == 1
    for out in (one, other):
        assert export.main(["--checkpoint", str(trained_run), "--out", str(out)]) == 0
    assert sorted(tmp_path.iterdir()) == [one, other]
    assert tree(one) == tree(other)


def test_a_signal_ends_it_and_leaves_nothing(trained_run: Path, tmp_path: Path) -> None:
    process = begun(trained_run, tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []
