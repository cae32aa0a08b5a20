"""Pictures of mistakes from sets behind URLs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dfdet.data.cache import Cache
from dfdet.data.index import Index, open_sets
from dfdet.data.reader import DamageError
from dfdet.evaluation.report.mistakes import Pictures
from tests.dfdet.data.storage import Server, serving


@dataclass
class Stored:
    """A set as it lies here, and as it lies behind a server."""

    local: Index
    remote: Index
    server: Server
    tar: Path


@pytest.fixture
def stored(signal_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    monkeypatch.setenv("NO_PROXY", "*")
    folder = Path(shutil.copytree(signal_sets["test"].parent, tmp_path / "served"))
    with serving(folder) as server:
        server.ranges = True
        cache = Cache(tmp_path / "cache", 2**30, retries=0)
        remote = open_sets([f"{server.url}/test.json"], cache=cache)
        yield Stored(open_sets([signal_sets["test"]]), remote, server, folder / "test-000000.tar")


def pictures(index: Index, rows: tuple[int, ...]) -> list[str]:
    with closing(Pictures(index)) as of:
        return [of.uri(index.videos[index.video[row]], int(index.frame[row]), 1.3) for row in rows]


def copies(index: Index) -> list[int]:
    """Sizes of the tar's copies in the cache."""
    return [path.stat().st_size for path in index.cache.folder.glob(index.shards[0].sha256)]


def test_only_the_bytes_of_the_pictures_are_fetched(stored: Stored) -> None:
    rows = (40, 3, 17)
    assert pictures(stored.remote, rows) == pictures(stored.local, rows)
    assert stored.server.sent[stored.tar.name] == int(np.sum(stored.remote.size[list(rows)]))
    assert copies(stored.remote) == []


def test_a_copy_in_the_cache_is_used(stored: Stored) -> None:
    os.close(stored.remote.cache.acquire(stored.remote.shards[0]))
    stored.server.counts.clear()
    assert pictures(stored.remote, (5,)) == pictures(stored.local, (5,))
    assert stored.server.counts[stored.tar.name] == 0


def test_a_storage_without_ranges_gives_the_whole_tar_once(stored: Stored) -> None:
    stored.server.ranges = False
    assert pictures(stored.remote, (40, 3, 17)) == pictures(stored.local, (40, 3, 17))
    assert copies(stored.remote) == [stored.tar.stat().st_size]


def test_bytes_that_were_changed_are_not_shown(stored: Stored) -> None:
    data = bytearray(stored.tar.read_bytes())
    data[int(stored.remote.offset[3]) + 99] ^= 1
    stored.tar.write_bytes(data)
    with pytest.raises(DamageError, match=r"test-000000\.tar: the bytes at \d+ were changed where they lie"):
        pictures(stored.remote, (3,))
    assert pictures(stored.remote, (4,)) == pictures(stored.local, (4,))


def test_a_tar_that_is_gone_is_damage_of_its_pictures(stored: Stored) -> None:
    stored.tar.unlink()
    with pytest.raises(DamageError, match="no such object"):
        pictures(stored.remote, (3,))
