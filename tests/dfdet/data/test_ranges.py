from __future__ import annotations

import hashlib

import pytest

from dfdet.data import remote
from dfdet.data.ranges import fetch_range
from dfdet.data.remote import ObjectError, Remote, StorageError
from tests.dfdet.data.storage import serving

DATA = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    with serving(tmp_path) as server:
        server.ranges = True
        yield server


@pytest.fixture
def tar(server) -> Remote:
    return Remote(f"{server.url}/a.tar?sig=1", len(DATA), hashlib.sha256(DATA).hexdigest())


def test_only_the_bytes_asked_for_come(server, tar):
    assert fetch_range(tar, 1000, 5000, 0) == DATA[1000:6000]
    assert (server.counts["a.tar"], server.sent["a.tar"]) == (1, 5000)


def test_a_server_without_ranges_is_told_by_none(server, tar):
    server.ranges = False
    assert fetch_range(tar, 1000, 5000, 0) is None


def test_a_passing_fault_is_tried_again(server, tar):
    server.fail["a.tar"], server.cut["a.tar"] = 1, 1
    assert fetch_range(tar, 256, 512, 2) == DATA[256:768]
    assert server.counts["a.tar"] == 3


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, ObjectError, "no such object"),
        (403, StorageError, r"access denied \(HTTP 403\)"),
        (500, StorageError, "2 times tried"),
    ],
)
def test_an_object_that_cannot_be_had_is_told_as_of_a_whole_one(server, tar, status, kind, message):
    server.status["a.tar"] = status
    with pytest.raises(kind, match=rf"a\.tar\?\.\.\.: .*{message}"):
        fetch_range(tar, 256, 512, 1)
