"""Checkpoints beside training: order, bounded memory, retention, and storage that is full or away."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.checkpoint import CheckpointState
from dfdet.checkpoints.saver import PeerFailedError, Saver, leave_together
from dfdet.config import Config
from dfdet.errors import TrainingError
from dfdet.runs import patience
from dfdet.schema import CropRecipe

CROP = CropRecipe(template="demo", scale=1.6, size_px=96)
ROOT = Path(__file__).parents[3]
NAME = "val/v/video/ap"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.02)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run" / "checkpoints"
    path.mkdir(parents=True)
    return path


def saver_of(folder, keep_last=2, keep_best=1, patience_s=20.0):
    return Saver(folder, keep_last=keep_last, keep_best=keep_best, patience_s=patience_s)


def give(saver, step, metric=None, best=False, size=8):
    return saver.save(
        best=(NAME, metric) if best else None,
        metric=metric,
        state=CheckpointState(step=step, epoch=0, batch=step, fingerprint="f", seed=0),
        trained={"w": torch.full((size,), float(step))},
        optimizer={"w": {"exp_avg": torch.zeros(size)}},
        config_json=Config().to_json(),
        crop=CROP,
        backbone={"name": "tiny"},
    )


def steps(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


class Gate:
    """Holds each write until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.entered, self.order = threading.Event(), threading.Event(), []
        write = checkpoint.write

        def held(folder, **parts):
            self.entered.set()
            assert self.opened.wait(30)
            self.order.append(parts["state"].step)
            return write(folder, **parts)

        monkeypatch.setattr(checkpoint, "write", held)


# ---- in the background


def test_what_was_given_is_on_the_disk_after_a_wait(folder):
    with saver_of(folder) as saver:
        path = give(saver, 7, metric=0.5, best=True)
        saver.wait()
        assert path == folder / "step_00000007"
        assert checkpoint.problem(path) is None
        assert torch.equal(checkpoint.load_tensors(path).trained["w"], torch.full((8,), 7.0))
        assert json.loads((folder / "last.json").read_text())["step"] == 7
        best = {"checkpoint": path.name, "step": 7, "metric": NAME, "value": 0.5}
        assert json.loads((folder / "best.json").read_text()) == best


def test_training_goes_on_while_a_checkpoint_is_written(folder, monkeypatch):
    gate = Gate(monkeypatch)
    with saver_of(folder) as saver:
        give(saver, 1)
        assert gate.entered.wait(30)
        give(saver, 2)  # returns, though nothing is written
        assert steps(folder) == []
        gate.opened.set()
        saver.wait()
    assert gate.order == [1, 2]


def test_a_third_waits_until_the_first_is_written_and_the_order_holds(folder, monkeypatch):
    gate = Gate(monkeypatch)
    with saver_of(folder) as saver:
        for step in (1, 2):
            give(saver, step)
        third = threading.Thread(target=give, args=(saver, 3))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        gate.opened.set()
        third.join(30)
        saver.wait()
    assert gate.order == [1, 2, 3] and saver.blocked_s > 0


def test_close_writes_what_is_in_hand(folder):
    saver = saver_of(folder)
    give(saver, 1)
    give(saver, 2)
    saver.close()
    assert steps(folder) == [1, 2]


def test_an_exit_without_close_ends_and_writes(folder):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.dfdet.checkpoints.test_saver import give, saver_of\n"
        "saver = saver_of(Path(sys.argv[1]))\ngive(saver, 1)\nraise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, timeout=100)
    assert done.returncode == 3
    assert checkpoint.latest_valid(folder).name == "step_00000001"


# ---- retention


def test_the_newest_and_the_best_are_kept(folder):
    with saver_of(folder, keep_last=2, keep_best=2) as saver:
        for step, metric in enumerate((0.5, 0.9, 0.2, 0.8, 0.1, 0.3), start=1):
            give(saver, step, metric, best=metric in (0.5, 0.9))
        give(saver, 7)  # within an epoch: no metric
        saver.wait()
    assert steps(folder) == [2, 4, 6, 7]
    assert json.loads((folder / "best.json").read_text())["step"] == 2


def test_of_equal_ones_the_earlier_is_the_better(folder):
    with saver_of(folder, keep_last=1, keep_best=1) as saver:
        for step in (1, 2, 3):
            give(saver, step, 0.5, best=step == 1)
        saver.wait()
    assert steps(folder) == [1, 3]


def test_what_a_kill_before_the_removal_left_goes_at_the_next_wait(folder):
    with saver_of(folder, keep_last=4) as saver:
        for step in (1, 2, 3, 4):
            give(saver, step)
    with saver_of(folder, keep_last=1) as saver:
        saver.wait()
    assert steps(folder) == [4]


# ---- storage that is full or away


def test_a_storage_that_is_away_for_a_while_costs_nothing(folder, caplog):
    away = folder.parent.with_name("away")
    with saver_of(folder) as saver:
        give(saver, 1)
        saver.wait()
        folder.parent.rename(away)
        give(saver, 2)
        give(saver, 3)
        time.sleep(0.3)
        assert not folder.parent.exists()  # nobody has made it anew
        saver.check()
        away.rename(folder.parent)
        saver.wait()
    assert steps(folder) == [2, 3]
    assert all(checkpoint.problem(folder / checkpoint.step_name(step)) is None for step in (2, 3))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "No such file or directory" in warnings[0].getMessage()


def test_an_empty_mount_point_is_not_filled(folder):
    away = folder.parent.with_name("away")
    folder.parent.rename(away)
    folder.parent.mkdir()  # what an unmounted share leaves
    with saver_of(folder, patience_s=0.1) as saver:
        give(saver, 1)
        with pytest.raises(TrainingError, match="step_00000001: cannot be written"):
            saver.wait()
    assert list(folder.parent.iterdir()) == []


def test_past_the_patience_it_is_one_clear_error_and_no_more_is_written(folder):
    folder.rename(folder.with_name("away"))
    with saver_of(folder, patience_s=0.1) as saver:
        give(saver, 1)
        while not saver.failed:
            time.sleep(0.01)
        for step in (2, 3, 4, 5):
            give(saver, step)  # neither blocks nor raises: no rank leaves alone
        with pytest.raises(TrainingError, match=r"No such file.*start the run again.*intact"):
            saver.check()
    folder.with_name("away").rename(folder)
    assert steps(folder) == []


def test_an_error_of_the_program_is_not_tried_again(folder):
    with saver_of(folder, patience_s=1000) as saver:
        saver.save(
            state=CheckpointState(step=1, epoch=0, batch=1, fingerprint="f", seed=0),
            trained={},
            optimizer={},
            config_json="{}",
            crop=CROP,
            backbone={},
            extra={"../x.json": {}},
        )
        with pytest.raises(ValueError, match="extra file"):
            saver.wait()


def test_close_does_not_wait_for_a_storage_that_is_away(folder):
    folder.rename(folder.with_name("away"))
    saver = saver_of(folder, patience_s=1000)
    give(saver, 1)
    saver.close()
    assert saver.failed


FULL = """
import os, sys, time
from pathlib import Path
from dfdet.checkpoints import checkpoint
from dfdet.runs import patience
from tests.dfdet.checkpoints.test_saver import give, saver_of, steps
patience.FIRST_PAUSE_S = 0.02
folder = Path(sys.argv[1]) / "checkpoints"
folder.mkdir()
saver = saver_of(folder, keep_last=9, patience_s=float(sys.argv[2]))
give(saver, 1, size=50_000)
saver.wait()
ballast = folder.parent / "ballast"
try:
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
give(saver, 2, size=50_000)
if sys.argv[3] == "freed":
    time.sleep(0.3)
    print(steps(folder), len(list(folder.glob(".*"))) < 2)
    ballast.unlink()
try:
    saver.wait()
except Exception as error:
    print(type(error).__name__, error)
print(steps(folder), [checkpoint.problem(path) for path in sorted(folder.glob("step_*"))])
print([path.name for path in folder.glob(".*")])
"""


@pytest.fixture
def on_a_full_disk(tmp_path):
    """Runs ``FULL`` on a disk of 1 MiB, in a process that may mount one; its lines."""
    mount = f"mkdir -p {tmp_path}/disk && mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces to mount a small disk in")

    def lines(patience_s, then):
        command = [sys.executable, "-c", FULL, f"{tmp_path}/disk", str(patience_s), then]
        shell = ["unshare", "-Urm", "sh", "-c", mount + ' && exec "$@"', "sh", *command]
        made = subprocess.run(shell, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
        return made.stdout.splitlines()

    return lines


def test_a_disk_that_is_full_for_a_while_costs_nothing(on_a_full_disk):
    assert on_a_full_disk(60, "freed") == ["[1] True", "[1, 2] [None, None]", "[]"]


def test_a_disk_that_stays_full_ends_the_run_with_what_was_written_intact(on_a_full_disk):
    error, *rest = on_a_full_disk(0.3, "full")
    assert error.startswith("TrainingError checkpoint ") and "No space left on device" in error
    assert rest == ["[1] [None]", "[]"]


# ---- all ranks together


def test_the_first_rank_tells_and_the_others_leave_without_a_word(folder):
    shutil.rmtree(folder)
    saver = saver_of(folder, patience_s=0)
    give(saver, 1)
    saver.close()
    with pytest.raises(TrainingError, match="cannot be written"):
        leave_together(True, saver)
    with pytest.raises(PeerFailedError):
        leave_together(True, None)
    leave_together(False, None)
