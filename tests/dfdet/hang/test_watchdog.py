"""Watchdogs of real processes: hung, frozen and suspended ones, and those that are only slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dfdet.hang import ranks

ROOT = Path(__file__).parents[3]

BEGIN = """
import ctypes, sys, threading, time
from pathlib import Path
from dfdet.hang import watchdog
from dfdet.hang.progress import PROGRESS
from dfdet.hang.verdict import line
from dfdet.hang.watchdog import Watchdog

folder = Path(sys.argv[1])

def tell(hang):
    with (folder / "told").open("a") as file:
        file.write(line(hang, "STACKS") + "\\n")

def watch(seconds, **more):
    return Watchdog(seconds, 0, 1, folder / "stacks", tell, **more)

def pass_steps(count):
    for step in range(1, count + 1):
        PROGRESS.mark("data wait", step)
        PROGRESS.mark("forward and backward")

def sleeping_step():
    time.sleep(1000)

def hold_the_interpreter(seconds):
    ctypes.PyDLL(None).sleep(seconds)
"""


def start(folder: Path, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + body, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def code_of(process: subprocess.Popen[str]) -> int:
    """Exit code; what it said otherwise is in the way of the assertion that fails."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    print(out, err)
    return process.returncode


def run(folder: Path, body: str) -> int:
    return code_of(start(folder, body))


def told(folder: Path) -> list[str]:
    path = folder / "told"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- one process


def test_a_hang_ends_the_process_with_a_line_and_the_stack(tmp_path: Path) -> None:
    assert run(tmp_path, "with watch(0.5):\n    pass_steps(2)\n    sleeping_step()") == 1
    [line] = told(tmp_path)
    assert line.startswith("worker 0 did nothing for ")
    assert " s in step 2 (forward and backward); it is in <string>:" in line
    assert line.endswith(" sleeping_step; stacks: STACKS; if that is no hang, raise --engine.hang_timeout_s")
    stacks = (tmp_path / "stacks/rank-0.txt").read_text()
    assert " s in step 2 (forward and backward)\n\nthread MainThread:\n" in stacks
    assert stacks.rstrip().endswith("in sleeping_step")
    assert "hang-" not in stacks


def test_what_goes_on_is_left_alone_and_leaves_nothing(tmp_path: Path) -> None:
    body = (
        "with watch(0.5):\n    for step in range(1, 12):\n        pass_steps(step)\n        time.sleep(0.1)"
    )
    assert run(tmp_path, body) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_a_phase_may_take_long(tmp_path: Path) -> None:
    body = "with watch(0.2):\n    PROGRESS.mark('building the model')\n    time.sleep(1.5)"
    assert run(tmp_path, body) == 0
    assert told(tmp_path) == []


def test_signs_of_life_are_no_hang(tmp_path: Path) -> None:
    body = """
with watch(1.0):
    pass_steps(2)
    for _ in range(25):
        PROGRESS.alive()
        time.sleep(0.1)
"""
    assert run(tmp_path, body) == 0


def test_no_timeout_is_no_watchdog(tmp_path: Path) -> None:
    body = "with watch(0.0):\n    pass_steps(2)\n    assert threading.active_count() == 1"
    assert run(tmp_path, body) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_suspended_for_longer_goes_on(tmp_path: Path) -> None:
    body = """
with watch(1.0):
    pass_steps(2)
    (folder / "steps").touch()
    while not (folder / "go").exists():
        pass_steps(1)
        time.sleep(0.01)
"""
    process = start(tmp_path, body)
    wait_for((tmp_path / "steps").exists)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    assert code_of(process) == 0
    assert told(tmp_path) == []


def test_a_thread_that_training_waits_for_is_named(tmp_path: Path) -> None:
    body = """
from concurrent.futures import ThreadPoolExecutor
def stuck_read():
    time.sleep(1000)
with watch(0.5):
    pass_steps(2)
    PROGRESS.mark("data wait", 3)
    ThreadPoolExecutor(2, thread_name_prefix="dfdet-decode").submit(stuck_read).result()
"""
    assert run(tmp_path, body) == 1
    [line] = told(tmp_path)
    assert "in step 3 (data wait); it is in <string>:" in line
    assert " stuck_read (thread dfdet-decode_0);" in line
    assert "in stuck_read" in (tmp_path / "stacks/rank-0.txt").read_text()


def test_a_frozen_interpreter_leaves_its_stacks_and_ends_where_nobody_else_can_tell(tmp_path: Path) -> None:
    body = "with watch(0.5, ends_frozen=True):\n    pass_steps(2)\n    hold_the_interpreter(1000)"
    assert run(tmp_path, body) == 1
    stacks = (tmp_path / "stacks/rank-0.txt").read_text()
    assert stacks.startswith("Timeout (") and "in hold_the_interpreter\n" in stacks


def test_a_run_folder_that_hangs_too_does_not_keep_the_process(tmp_path: Path) -> None:
    body = """
watchdog.WRITE_S = 0.5
tell = lambda hang: time.sleep(1000)
with watch(0.5):
    pass_steps(2)
    sleeping_step()
"""
    assert run(tmp_path, body) == 1


def test_stacks_that_cannot_be_written_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file where the folder should be")
    assert run(tmp_path, "with watch(0.5):\n    pass_steps(2)\n    sleeping_step()") == 1
    assert len(told(tmp_path)) == 1


# ---- several ranks


def test_of_two_ranks_the_sleeping_one_is_named_and_both_end(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.second_sleeps, tmp_path) == [1, 1]
    [line] = told(tmp_path)
    assert line.startswith("worker 1 did nothing for ")
    assert ", while 1 other waited for it; it is in ranks.py:" in line and " sleeping_step;" in line
    assert "in sleeping_step" in (tmp_path / "stacks/rank-1.txt").read_text()
    assert "in all_reduce" in (tmp_path / "stacks/rank-0.txt").read_text()


def test_a_stopped_rank_is_named_by_the_other(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.second_is_stopped, tmp_path, enders=[0]) == [1, None]
    [line] = told(tmp_path)
    assert line.startswith("worker 1 does not answer, while 1 other waited for ")


def test_a_stopped_rank_that_has_the_store_is_named_too(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.first_is_stopped_with_the_store, tmp_path, enders=[1]) == [None, 1]
    [line] = told(tmp_path)
    assert line.startswith("worker 0 does not answer, while 1 other waited for ")


def test_the_stack_of_a_rank_that_holds_its_interpreter_is_there(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.second_holds_its_interpreter, tmp_path, enders=[0]) == [1, None]
    [line] = told(tmp_path)
    assert line.startswith("worker 1 does not answer")
    assert "in second_holds_its_interpreter\n" in (tmp_path / "stacks/rank-1.txt").read_text()


def test_a_rank_that_is_only_slow_is_waited_for(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.second_is_slow, tmp_path) == [0, 0]
    assert told(tmp_path) == [] and not (tmp_path / "stacks").exists()


def test_a_rank_that_is_through_is_not_blamed(tmp_path: Path) -> None:
    assert ranks.exit_codes(ranks.first_sleeps_when_second_is_through, tmp_path) == [1, 0]
    [line] = told(tmp_path)
    assert line.startswith("worker 0 did nothing for ") and "other" not in line


# ---- the command


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_code_1(signal_sets: dict[str, Path], tmp_path: Path) -> None:
    from tests.dfdet.test_local import command, torchrun
    from tests.dfdet.test_local import start as start_command

    faults = str(Path(__file__).parent / "faults")
    environment = {"PYTHONPATH": f"{faults}:{ROOT}", "DFDET_FAULT": "1:3:sleep"}
    os.environ |= environment
    try:
        process = start_command(
            command(signal_sets, tmp_path, "--run.workers", "2", "--engine.hang_timeout_s", "3"), torchrun(2)
        )
    finally:
        for name in environment:
            del os.environ[name]
    _, err = process.communicate(timeout=250)
    assert process.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: worker 1 did nothing for ")
    assert (
        " s in step 3 (forward and backward), while 1 other waited for it; it is in sitecustomize.py:" in line
    )
    assert f"; stacks: {tmp_path}/run/stacks; " in line
    assert line.endswith(f" (log: {tmp_path}/run/log.txt)")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "failed" and result["message"] in line
    assert "in fall_asleep" in (tmp_path / "run/stacks/rank-1.txt").read_text()
    assert not (tmp_path / "run/owner.json").exists()
