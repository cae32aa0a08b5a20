from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dfdet.config import Data
from dfdet.data import remote
from dfdet.data.cache import GIB, Cache
from dfdet.data.index import make_cache
from dfdet.data.remote import Interrupted, ObjectError, Remote, StorageError
from dfdet.errors import ConfigError
from tests.dfdet.data.storage import serving, wait_for

ROOT = Path(__file__).parents[3]
SIZE = 10_000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def objects(server, tmp_path) -> list[Remote]:
    """Six objects of 10,000 bytes."""
    return [stored(server, tmp_path, number) for number in range(6)]


def stored(server, tmp_path, number: int, size: int = SIZE) -> Remote:
    data = bytes([number]) * size
    (tmp_path / "served" / f"{number}.tar").write_bytes(data)
    return Remote(f"{server.url}/{number}.tar", size, hashlib.sha256(data).hexdigest())


def read(cache: Cache, wanted: Remote) -> bytes:
    with os.fdopen(cache.acquire(wanted), "rb") as file:
        return file.read()


def copies(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.name != "locks"}


def run(code: str, *arguments: object, **options) -> subprocess.Popen:
    """A process of its own with the cache at hand."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom dfdet.data.cache import Cache\n"
    head += "from dfdet.data.remote import Remote\nfrom dfdet.errors import DfdetError\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


def test_an_object_is_fetched_once_and_named_by_its_content(objects, server, tmp_path):
    cache = Cache(tmp_path / "cache", GIB)
    for _ in range(2):
        assert read(cache, objects[3]) == bytes([3]) * SIZE
    assert read(Cache(tmp_path / "cache", GIB), objects[3]) == bytes([3]) * SIZE
    assert server.counts["3.tar"] == 1 and copies(cache) == {objects[3].sha256}


def test_threads_that_want_the_same_object_fetch_it_once(objects, server, tmp_path):
    cache = Cache(tmp_path / "cache", GIB)
    server.pause_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read(cache, objects[0]), range(8)))
    assert found == [bytes(SIZE)] * 8 and server.counts["0.tar"] == 1


def test_the_least_recently_used_goes_first(objects, server, tmp_path):
    cache = Cache(tmp_path / "cache", 3 * SIZE)
    for number in (0, 1, 2, 0, 3):
        read(cache, objects[number])
    assert copies(cache) == {objects[number].sha256 for number in (0, 2, 3)}


def test_what_is_in_use_stays_and_the_bound_is_exceeded_with_a_warning(objects, tmp_path, caplog):
    cache = Cache(tmp_path / "cache", 2 * SIZE)
    held = [cache.acquire(wanted) for wanted in objects[:4]]
    assert copies(cache) == {wanted.sha256 for wanted in objects[:4]}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "raise --data.cache_gib" in record.getMessage()
    os.close(held[1])
    os.close(held[2])
    read(cache, objects[4])
    assert copies(cache) == {objects[number].sha256 for number in (0, 3, 4)}
    for number in (0, 3):
        assert os.pread(held[number], SIZE, 0) == bytes([number]) * SIZE
        os.close(held[number])


HOLD = """
wanted = Remote(sys.argv[2], 10_000, sys.argv[3])
descriptor = Cache(Path(sys.argv[1]), 10**9).acquire(wanted)
print("held", flush=True)
time.sleep(60)
"""


def test_use_by_another_process_counts_and_ends_with_its_kill(objects, tmp_path):
    cache = Cache(tmp_path / "cache", SIZE)
    other = run(HOLD, cache.folder, objects[0].url, objects[0].sha256)
    assert other.stdout.readline() == "held\n"
    read(cache, objects[1])
    read(cache, objects[2])
    assert objects[0].sha256 in copies(cache)
    other.kill()
    other.wait()
    read(cache, objects[3])
    assert copies(cache) == {objects[3].sha256}


def test_two_processes_fetch_each_object_once(objects, server, tmp_path):
    server.pause_s = 0.05
    code = """
    folder, url = sys.argv[1:3]
    cache = Cache(Path(folder), 10**9)
    for number, sha256 in enumerate(sys.argv[3:]):
        data = os.pread(cache.acquire(Remote(f"{url}/{number}.tar", 10_000, sha256)), 10_000, 0)
        print(data == bytes([number]) * 10_000)
    """
    arguments = [tmp_path / "cache", server.url, *(wanted.sha256 for wanted in objects)]
    processes = [run(code, *arguments) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["True\n" * 6] * 2
    assert set(server.counts.values()) == {1} and len(server.counts) == 6


def test_a_kill_in_mid_download_leaves_nothing_that_is_used(server, tmp_path):
    big = stored(server, tmp_path, 7, 50_000_000)
    code = """
    from dfdet.data import cache
    real = cache.os.fsync
    def slow(descriptor):
        print("written", flush=True)
        time.sleep(60)
    cache.os.fsync = slow
    Cache(Path(sys.argv[1]), 10**9).acquire(Remote(sys.argv[2], 50_000_000, sys.argv[3]))
    """
    other = run(code, tmp_path / "cache", big.url, big.sha256)
    assert other.stdout.readline() == "written\n"
    other.kill()
    other.wait()
    cache = Cache(tmp_path / "cache", GIB)
    assert [name[-5:] for name in copies(cache)] == [".part"]
    (part,) = cache.folder.glob("*.part")
    part.write_bytes(b"half")
    assert read(cache, big) == bytes([7]) * 50_000_000
    assert copies(cache) == {big.sha256} and server.counts["7.tar"] == 2


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25])
def test_a_kill_at_any_time_leaves_nothing_that_is_used(server, tmp_path, seconds):
    big = stored(server, tmp_path, 7, 200_000_000)
    code = """
    cache, wanted = Cache(Path(sys.argv[1]), 10**9), Remote(sys.argv[2], 200_000_000, sys.argv[3])
    print("begun", flush=True)
    cache.acquire(wanted)
    """
    other = run(code, tmp_path / "cache", big.url, big.sha256)
    other.stdout.readline()
    wait_for(lambda: server.counts["7.tar"])
    threading.Event().wait(seconds)
    other.kill()
    other.wait()
    cache = Cache(tmp_path / "cache", GIB)
    with os.fdopen(cache.acquire(big), "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == big.sha256
    assert copies(cache) == {big.sha256}


def test_a_changed_object_leaves_no_copy(objects, tmp_path):
    (tmp_path / "served" / "2.tar").write_bytes(b"x" * SIZE)
    cache = Cache(tmp_path / "cache", GIB)
    with pytest.raises(ObjectError, match="changed or damaged"):
        cache.acquire(objects[2])
    assert copies(cache) == set()


def test_a_cut_copy_is_fetched_again(objects, server, tmp_path):
    cache = Cache(tmp_path / "cache", GIB)
    read(cache, objects[1])
    (cache.folder / objects[1].sha256).write_bytes(b"x")
    assert read(cache, objects[1]) == bytes([1]) * SIZE and server.counts["1.tar"] == 2


def test_a_wait_for_an_object_can_be_given_up(objects, server, tmp_path):
    server.status["0.tar"] = 503
    stop, ended = threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(Interrupted):
            Cache(tmp_path / "cache", GIB, retries=100).acquire(objects[0], stop)
        ended.set()

    threading.Thread(target=wait).start()
    wait_for(lambda: server.counts["0.tar"] > 2)
    stop.set()
    assert ended.wait(5) and copies(Cache(tmp_path / "cache", GIB)) == set()


FULL = """
size, url = int(sys.argv[2]), sys.argv[3]
cache = Cache(Path(sys.argv[1]), 10**9)
for number, sha256 in enumerate(sys.argv[4:]):
    try:
        descriptor = cache.acquire(Remote(f"{url}/{number}.tar", size, sha256))
        print(number, os.pread(descriptor, size, 0) == bytes([number]) * size)
        if os.environ["USED"] == "no":
            os.close(descriptor)
    except DfdetError as error:
        print(error.exit_code, error)
print(len(list(Path(sys.argv[1]).glob("*.part"))))
"""


@pytest.fixture
def on_small_disk(tmp_path, server):
    """Fetches six objects of 300 kB to a disk of 1 MiB in a process that may mount one; its lines."""
    mount = f"mkdir -p {tmp_path}/disk && mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk"
    probe = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no user namespaces to mount a small disk in")
    objects = [stored(server, tmp_path, number, 300_000) for number in range(6)]

    def lines(used: str) -> list[str]:
        shas = [wanted.sha256 for wanted in objects]
        command = [sys.executable, "-c", "import os, sys\nfrom pathlib import Path\n"
                   "from dfdet.data.cache import Cache\nfrom dfdet.data.remote import Remote\n"
                   "from dfdet.errors import DfdetError\n" + FULL]  # fmt: skip
        arguments = [f"{tmp_path}/disk/cache", "300000", server.url, *shas]
        shell = ["unshare", "-Urm", "sh", "-c", mount + ' && exec "$@"', "sh", *command, *arguments]
        environment = os.environ | {"USED": used}
        made = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return made.stdout.splitlines()

    return lines


def test_a_full_disk_first_loses_unused_copies(on_small_disk):
    assert on_small_disk(used="no") == [f"{number} True" for number in range(6)] + ["0"]


def test_a_full_disk_of_copies_in_use_is_one_clear_error(on_small_disk):
    lines = on_small_disk(used="yes")
    assert lines[:3] == ["0 True", "1 True", "2 True"] and lines[6] == "0"
    for line in lines[3:6]:
        assert line.startswith("1 ") and "/disk/cache: no room for a shard (No space left on device)" in line
        assert "--data.cache_dir" in line


def test_a_folder_that_cannot_be_made_is_said(objects, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/cache: cannot be used .* writable --data.cache_dir"):
        Cache(tmp_path / "file" / "cache", GIB).acquire(objects[0])


def test_the_configs_cache():
    cache = make_cache(Data(cache_dir="~/x", cache_gib=0.5, retries=7))
    assert (cache.folder, cache.max_bytes, cache.retries) == (Path.home() / "x", GIB // 2, 7)
    with pytest.raises(ConfigError, match="cache_dir=s3://b/c: not a local folder"):
        make_cache(Data(cache_dir="s3://b/c"))
