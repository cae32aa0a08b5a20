"""Following a growing log: whole lines only, each once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from ray_jobs.progress import Follower, Tail


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_a_tail_gives_only_whole_lines_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    tail = Tail(path, from_end=False)
    append(path, "one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    assert tail.lines() == []
    append(path, "ee")
    assert tail.lines() == []
    append(path, "\nfour\n")
    assert tail.lines() == ["three", "four"]


def test_a_file_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log.txt", from_end=True)
    assert tail.lines() == []
    append(tmp_path / "log.txt", "first\n")
    assert tail.lines() == ["first"]


def test_from_end_leaves_out_what_was_there(tmp_path: Path) -> None:
    append(tmp_path / "log.txt", "of an earlier run\n")
    tail = Tail(tmp_path / "log.txt", from_end=True)
    append(tmp_path / "log.txt", "new\n")
    assert tail.lines() == ["new"]


def test_a_file_that_was_made_shorter_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, "1\n2\n3\n")
    tail = Tail(path, from_end=False)
    assert tail.lines() == ["1", "2", "3"]
    path.write_text("1\n")
    assert tail.lines() == ["1"]
    append(path, "2b\n")
    assert tail.lines() == ["2b"]


def test_a_letter_cut_in_two_arrives_whole(tmp_path: Path) -> None:
    path, letter = tmp_path / "log.txt", "é".encode()
    tail = Tail(path, from_end=False)
    append(path, b"caf" + letter[:1])
    assert tail.lines() == []
    append(path, letter[1:] + b"\n")
    assert tail.lines() == ["café"]


def test_a_follower_prints_the_new_lines_up_to_the_end_of_its_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, metrics = tmp_path / "log.txt", tmp_path / "metrics.jsonl"
    append(log, "before\n")
    threads = threading.active_count()
    with Follower([log], metrics):
        append(log, "I step 1\ndone\nhalf")
        append(metrics, "no json\n[]\n" + json.dumps({"epoch": 1}) + "\n")
    assert [line for line in capsys.readouterr().out.splitlines() if line] == ["I step 1", "done"]
    assert threading.active_count() == threads


@pytest.mark.parametrize("loss", [0.5, None])
def test_a_record_of_steps_moves_the_bar(tmp_path: Path, loss: float | None) -> None:
    record = {"step": 3, "steps": 12, "train/loss/total": loss, "perf/images_per_s": 99.6}
    with Follower([tmp_path / "log.txt"], tmp_path / "metrics.jsonl") as follower:
        append(tmp_path / "metrics.jsonl", json.dumps(record) + "\n")
    task = follower.progress.tasks[0]
    assert (task.completed, task.total, task.description) == (3, 12, "training")
    assert task.fields["note"] == f"loss {loss or 0:.3f}  100 images/s"
