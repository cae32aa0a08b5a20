"""Jobs run in real processes; some of them kill theirs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from shards.mapping import CRASHED, here, in_processes
from shards.plan import Job
from shards.prepare import Prepared, failed
from shards.source import Video


def job(name):
    video = Video(Path(name), "real", name, "test")
    return Job(video, video.name)


def prepare(job):
    """Does what the video's name says."""
    what, _, seconds = job.video.video.partition(" ")
    if what.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if seconds:
        time.sleep(float(seconds))
    return Prepared(frames=int(what) if what.isdecimal() else os.getpid())


def make():
    return prepare


def mapper(workers=2):
    return in_processes(make, partial(failed, dataset="own"), workers)


def outcomes(names, workers=2):
    results = mapper(workers)(map(job, names))
    return [result.failure.reason if result.failure else result.frames for result in results]


def test_results_come_in_the_order_of_the_jobs():
    names = ["0 .3", "1", "2 .1", "3", "4", "5 .05", "6", "7", "8", "9", "10", "11", "12"]
    assert outcomes(names, 3) == list(range(13))


def test_jobs_are_taken_no_further_ahead_than_the_bound():
    taken = []

    def jobs():
        for number in range(40):
            taken.append(number)
            yield job(str(number))

    results = mapper(1)(jobs())
    assert next(results).frames == 0
    assert len(taken) <= 6
    results.close()


def test_a_job_that_kills_its_process_is_recorded_and_the_others_survive():
    names = [str(number) for number in range(6)] + ["kill"] + [str(number) for number in range(6, 20)]
    assert outcomes(names) == [*range(6), CRASHED, *range(6, 20)]


def test_every_job_may_kill_its_process():
    assert outcomes(["kill-a", "kill-b", "kill-c"]) == [CRASHED] * 3


def test_no_jobs_give_no_results():
    assert outcomes([]) == []


def test_jobs_can_run_in_this_process():
    assert [result.frames for result in here(make)([job("3"), job("here")])] == [3, os.getpid()]


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "from tests.shards.test_mapping import mapper, job\n"
        "if __name__ == '__main__':\n"
        "    for result in mapper(1)(job(name) for name in ['x', 'y', '1 60']):\n"
        "        print(result.frames, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path[1:]])}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False
