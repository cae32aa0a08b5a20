"""One owner of a run behind a URL: races, dead owners, other machines, storages without conditions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from dfdet.errors import RunFolderError
from dfdet.runs import claims, objects, ownership
from dfdet.runs.claims import OWNER, ObjectOwnership
from dfdet.runs.objects import Store
from dfdet.runs.ownership import Owner
from tests.dfdet.runs.s3 import BUCKET, s3_server

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture
def key(request):
    """Of the run, in the bucket."""
    return f"runs/{request.node.name}"


@pytest.fixture
def store(server, key):
    return Store(f"s3://{BUCKET}/{key}")


class Deaf(Store):
    """A storage that does as it is told, whatever the condition."""

    def put(self, name, data, *, new=False, over=None):
        super().put(name, data)


def owned_by(server, key, **changes) -> None:
    server.put(f"{key}/{OWNER}", json.dumps(Owner.here().model_dump() | changes).encode())


def raced(store: Store, count: int) -> list[ObjectOwnership]:
    """Those of many claims at once that were granted."""
    barrier, granted = threading.Barrier(count), []

    def claim() -> None:
        barrier.wait()
        try:
            granted.append(ObjectOwnership.take(store))
        except RunFolderError as error:
            assert "in use by process" in str(error) or "at this moment" in str(error)

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return granted


def test_of_many_claims_at_once_one_is_granted(store):
    for _ in range(5):
        [winner] = raced(store, 6)
        winner.release()


def test_of_many_that_find_a_dead_owner_one_takes_over(server, store, key):
    for _ in range(5):
        owned_by(server, key, pid=2**22 + 1, token="dead")
        [winner] = raced(store, 6)
        winner.release()


def test_a_storage_without_conditions_has_one_owner_too(server, key, monkeypatch):
    monkeypatch.setattr(claims, "SETTLE_S", 1.5)
    [winner] = raced(Deaf(f"s3://{BUCKET}/{key}"), 4)
    assert json.loads(server.get(f"{key}/{OWNER}"))["token"] == winner.owner.token
    winner.release()


def test_of_two_processes_at_once_one_is_granted(server, store):
    script = (
        "import sys\nfrom dfdet.runs.claims import ObjectOwnership\nfrom dfdet.runs.objects import Store\n"
        "store = Store(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "try:\n    ObjectOwnership.take(store)\n    print('granted', flush=True)\n    sys.stdin.readline()\n"
        "except Exception as error:\n    print(error, flush=True)\n"
    )
    command = [sys.executable, "-c", script, store.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in started]
        for process in started:
            process.kill()
    granted = answers.index("granted\n")
    assert f"in use by process {started[granted].pid} on " in answers[1 - granted]


def test_a_dead_process_of_this_machine_is_followed_at_once(server, store, key):
    owned_by(server, key, pid=2**22 + 1)
    taken = ObjectOwnership.take(store)
    assert json.loads(server.get(f"{key}/{OWNER}"))["pid"] == os.getpid()
    taken.release()
    assert server.names(key) == []


def test_the_owner_on_another_machine_lives_as_long_as_its_heartbeat(server, store, key, monkeypatch):
    owned_by(server, key, machine="elsewhere", host="node7", pid=12)
    with pytest.raises(RunFolderError, match=rf"{key}: in use by process 12 on node7 \(last sign of life \d"):
        ObjectOwnership.take(store)
    monkeypatch.setattr(ownership, "STALE_SECONDS", 0.0)
    ObjectOwnership.take(store).release()


def test_the_heartbeat_goes_on_and_release_ends_it(server, store, key, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    taken = ObjectOwnership.take(store)
    while json.loads(server.get(f"{key}/{OWNER}"))["beats"] < 3:
        assert taken._thread.is_alive()
    taken.release()
    taken.release()
    assert not taken.lost
    assert server.get(f"{key}/{OWNER}") is None


@pytest.mark.parametrize("what", ["taken over", "removed"])
def test_an_owner_notices_that_it_is_none_any_more(server, store, key, monkeypatch, what):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    taken = ObjectOwnership.take(store)
    store.remove(OWNER)
    if what == "taken over":
        owned_by(server, key, token="another")
    taken._thread.join(60)
    assert taken.lost
    taken.release()
    assert (server.get(f"{key}/{OWNER}") is not None) == (what == "taken over")


def test_a_storage_that_is_away_for_a_while_costs_no_ownership(server, store, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)
    taken = ObjectOwnership.take(store)
    server.stop()
    before = taken._beats
    server.start()
    while taken._beats < before + 3:
        assert taken._thread.is_alive()
    assert not taken.lost
    taken.release()


def test_an_unreadable_owner_counts_by_its_age(server, store, key, monkeypatch):
    server.put(f"{key}/{OWNER}", b"{")
    with pytest.raises(RunFolderError, match="in use by process -1 on unknown host"):
        ObjectOwnership.take(store)
    monkeypatch.setattr(ownership, "STALE_SECONDS", 0.0)
    ObjectOwnership.take(store).release()


def test_a_bucket_that_is_not_there_is_told(server):
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        ObjectOwnership.take(Store("s3://no-such-bucket/run"))
