"""The clock of a start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from dfdet.runs.startup import Startup


def test_parts_follow_each_other_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Startup(begun=100.0)
    for now, part in ((101.5, "imports"), (104.0, "ray")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        start.mark(part)
    assert start.parts == {"imports": 1.5, "ray": 2.5}
    assert start.total == 4.0
    assert str(start) == "first step after 4.0 s: imports 1.5, ray 2.5"


def test_a_worker_goes_on_where_the_driver_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Startup(begun=100.0, parts={"imports": 1.5})
    worker = Startup(**json.loads(json.dumps(asdict(driver))))
    monkeypatch.setattr(time, "time", lambda: 103.0)
    worker.mark("workers")
    assert worker.parts == {"imports": 1.5, "workers": 1.5}
    assert driver.parts == {"imports": 1.5}


def test_a_host_whose_clock_is_behind_takes_no_time_back(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Startup(begun=100.0, parts={"imports": 5.0})
    monkeypatch.setattr(time, "time", lambda: 101.0)
    start.mark("workers")
    assert start.parts["workers"] == 0.0


def test_a_process_knows_when_it_began() -> None:
    code = (
        "import time; time.sleep(0.5); before = time.time()\n"
        "from dfdet.runs.startup import Startup; print(before - Startup.of_process().begun)"
    )
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.49 < float(done.stdout) <= time.time() - begun + 0.02  # whole ticks
