"""The short version of ``benchmarks/kills.py``: ten real kills of the local loop at random moments."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = 10


@pytest.mark.slow
def test_killed_runs_that_go_on_end_as_an_uninterrupted_one(tmp_path: Path) -> None:
    command = ["benchmarks/kills.py", "--local", str(CASES), "--ray", "0", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = re.search(r"(\d+) cases, (\d+) kills, (\d+) equal", done.stdout)
    assert found is not None
    cases, kills, equal = map(int, found.groups())
    assert (cases, equal) == (CASES, CASES) and kills >= CASES
