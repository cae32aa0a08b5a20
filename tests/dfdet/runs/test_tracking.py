"""Background trackers and TensorBoard's files, read back by TensorBoard itself."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfdet.runs.tracking import Background, TensorBoard, brief, numbers


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    board = TensorBoard(folder)
    for record in records:
        board.record(record)
    board.close()


def test_tensorboard_reads_each_number_at_its_step(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"step": 10, "steps": 200, "epoch": 0.5, "train/loss/total": 0.75, "val/a/video/ap": None},
            {"step": 200, "epoch": 1, "val/a/video/ap": 0.5},
        ],
    )
    assert curve(tmp_path, "train/loss/total") == [(10, 0.75)]
    assert curve(tmp_path, "val/a/video/ap") == [(200, 0.5)]
    assert curve(tmp_path, "epoch") == [(10, 0.5), (200, 1.0)]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert sorted(tags) == ["epoch", "train/loss/total", "val/a/video/ap"]


def test_a_resume_hides_what_was_written_after_its_step(tmp_path: Path) -> None:
    write(tmp_path, [{"step": step, "loss": 1.0} for step in (10, 20, 30, 40)])
    write(tmp_path, [{"step": step, "loss": 2.0} for step in (30, 40, 50)])
    assert curve(tmp_path, "loss") == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0), (50, 2.0)]


def test_an_event_longer_than_a_byte_of_length_is_read_whole(tmp_path: Path) -> None:
    names = [f"val/demo/video/{number:03d}" for number in range(300)]
    write(tmp_path, [{"step": 1 << 40, **{name: float(n) for n, name in enumerate(names)}}])
    assert [curve(tmp_path, name) for name in names[::100]] == [[(1 << 40, float(n))] for n in (0, 100, 200)]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from dfdet.runs.tracking import EventFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file, failures = EventFile(Path(sys.argv[1])), 0
def record(step):
    global failures
    try:
        file.record({"step": step, "loss": float(step)})
    except OSError:
        failures += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
for step in range(10):
    record(step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
record(10)
print(failures)
"""


def test_a_file_that_could_not_grow_for_a_while_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    points = curve(tmp_path, "loss")
    failures = int(done.stdout)
    assert 0 < failures < 10
    assert points == [(step, float(step)) for step in [*range(10 - failures), 10]]


def test_a_folder_that_cannot_be_written_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "dfdet.runs.tracking"):
        write(tmp_path / "file", [{"step": step, "loss": 1.0} for step in range(3)])
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("TensorBoard: FileExistsError")


class Flaky:
    """Fails on step 1."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed = False

    def record(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 1:
            raise ConnectionError("server away")
        self.steps.append(metrics["step"])

    def close(self) -> None:
        self.closed = True


def test_a_record_that_fails_is_dropped_and_the_next_one_sent() -> None:
    flaky = Flaky()
    tracker = Background("flaky", lambda: flaky)
    for step in range(3):
        tracker.record({"step": step})
    tracker.close()
    assert flaky.steps == [0, 2]
    assert flaky.closed


def test_a_tracker_that_did_not_open_is_opened_again() -> None:
    attempts: list[Flaky] = []

    def open_second() -> Flaky:
        attempts.append(Flaky())
        if len(attempts) == 1:
            raise ConnectionError("server away")
        return attempts[-1]

    tracker = Background("late", open_second)
    for step in (2, 3, 4):
        tracker.record({"step": step})
    tracker.close()
    assert [each.steps for each in attempts] == [[], [3, 4]]


def test_a_record_does_not_wait_for_a_slow_tracker() -> None:
    free = threading.Event()

    class Slow(Flaky):
        def record(self, metrics: dict[str, Any]) -> None:
            assert free.wait(30)
            super().record(metrics)

    slow = Slow()
    tracker = Background("slow", lambda: slow)
    for step in range(2, 7):
        tracker.record({"step": step})
    assert slow.steps == []  # all were taken while the first is still being sent
    free.set()
    tracker.close()
    assert slow.steps == [2, 3, 4, 5, 6]


def test_a_tracker_that_is_not_used_starts_no_thread_and_no_file(tmp_path: Path) -> None:
    before = threading.active_count()
    TensorBoard(tmp_path / "tensorboard").close()
    assert threading.active_count() == before
    assert not (tmp_path / "tensorboard").exists()


def test_messages_hold_no_key_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    error = ConnectionError(f"http://user:secret@host/api refused {'k' * 40}\nsecond line")
    assert brief(error) == "ConnectionError: http://host/api refused ..."


def test_numbers_leave_out_what_has_no_value_and_what_is_no_curve() -> None:
    record = {"step": 3, "steps": 9, "train/batch_crc32": 7, "val/a": None, "note": "text"}
    assert numbers(record | {"epoch": 1, "loss": 0.5}) == {"epoch": 1.0, "loss": 0.5}
