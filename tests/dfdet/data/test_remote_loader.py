"""Batches from remote shards equal those from local ones, whatever happens to server and cache."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdet.config import Augment
from dfdet.data import remote
from dfdet.data.cache import GIB, Cache
from dfdet.data.feed import Feed
from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import EpochPlan, PlanSpec, epoch_plan, sequential_plan
from dfdet.data.reader import Reader
from dfdet.data.remote import StorageError
from dfdet.errors import DamagedSampleError, ShardSetError, TrainingError
from tests.dfdet.data.storage import ServerProcess, serving

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_set) -> Path:
    """A set of 72 samples in some 12 shards."""
    made = tmp_path_factory.mktemp("served")
    make_set(made, groups=12, frames=2, max_shard_bytes=40_000)
    return made


@pytest.fixture(scope="module")
def local(folder) -> Index:
    index = open_sets([folder / "demo.json"])
    assert len(index.shards) >= 6
    return index


@pytest.fixture
def own(tmp_path, make_set) -> Path:
    """A set of its own, to be damaged."""
    made = tmp_path / "own"
    make_set(made, groups=4, frames=2, max_shard_bytes=40_000)
    return made


def loader_of(index: Index, **changes) -> Loader:
    options = {"crop_scale": 1.3, "augment": Augment(), "seed": 5, "threads": 2, "prefetch": 2}
    return Loader(index, **{**options, "on_damage": "raise", "max_damaged": 100, **changes})


def batches(index: Index, plan: EpochPlan, *, world: int = 1, start: int = 0, stop: int | None = None):
    """Ids and pixels of global batches, put together from all ranks in turn."""
    loaders = [loader_of(index) for _ in range(world)]
    parts = [
        loader.batches(plan, epoch=0, rank=rank, world=world, start=start)
        for rank, loader in enumerate(loaders)
    ]
    found = []
    for row in zip(*parts, strict=True):
        found.append((np.concatenate([b.ids for b in row]), torch.cat([b.images for b in row]).clone()))
        if start + len(found) == stop:
            break
    for part, loader in zip(parts, loaders, strict=True):
        part.close()
        loader.close()
    return found


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for (ids, images), (wanted_ids, wanted) in zip(found, expected, strict=True):
        assert ids.tolist() == wanted_ids.tolist() and torch.equal(images, wanted)


def shard_bytes(index: Index) -> int:
    return max(path.stat().st_size for path in index.shards)


class Storage:
    """A copy of the set on a server: its URL, and how to kill, start and damage it."""

    def __init__(self, url: str, kill, start, put) -> None:
        self.url, self.kill, self.start, self.put = url, kill, start, put

    def open(self, cache: Cache) -> Index:
        return open_sets([f"{self.url}/demo.json"], cache=cache)


@pytest.fixture(params=["http", "s3"])
def storage(request, folder, tmp_path, monkeypatch):
    served = tmp_path / "served"
    shutil.copytree(folder, served)
    if request.param == "http":
        server = ServerProcess(served)
        yield Storage(
            server.url, server.kill, server.start, lambda name, data: (served / name).write_bytes(data)
        )
        server.kill()
        return
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sets")

    def put(name: str, data: bytes) -> None:
        client.put_object(Bucket="sets", Key=f"deep/{name}", Body=data)

    for path in served.iterdir():
        put(path.name, path.read_bytes())
    remote._filesystem_of.cache_clear()

    def start() -> None:
        server._port = port
        server.start()

    yield Storage("s3://sets/deep", server.stop, start, put)
    server.stop()
    remote._filesystem_of.cache_clear()


class TestAgainstServers:
    """Over HTTP and over S3."""

    def test_an_epoch_equals_the_local_one_with_each_sample_once(self, storage, local, tmp_path):
        index = storage.open(Cache(tmp_path / "cache", GIB))
        plan = epoch_plan(local, PlanSpec(1, 8, "single"), 0)
        expected = batches(local, plan)
        assert_equal(batches(index, plan, world=2), expected)
        ids = np.concatenate([ids for ids, _ in expected])
        assert sorted(ids) == list(range(len(local)))

    def test_a_server_killed_and_started_again_in_mid_epoch(self, storage, local, tmp_path):
        index = storage.open(Cache(tmp_path / "cache", 1, retries=100))
        plan = epoch_plan(local, PlanSpec(1, 8, "single", block_shards=1), 0)
        with loader_of(index, prefetch=1) as loader:
            iterator = loader.batches(plan, epoch=0, rank=0, world=1)
            found = [next(iterator)]
            storage.kill()
            threading.Timer(1.0, storage.start).start()
            found += list(iterator)
        assert_equal([(b.ids, b.images) for b in found], batches(local, plan))

    def test_a_run_stopped_by_a_dead_server_resumes_on_another_world(self, storage, local, tmp_path):
        index = storage.open(Cache(tmp_path / "cache", 1, retries=1))
        plan = epoch_plan(local, PlanSpec(1, 8, "single", block_shards=1), 0)
        found = []
        with loader_of(index, prefetch=1) as loader, pytest.raises(StorageError, match=r"--data\.retries"):
            for batch in loader.batches(plan, epoch=0, rank=0, world=1):
                found.append((batch.ids, batch.images))
                if len(found) == 2:
                    storage.kill()
        assert 2 <= len(found) < len(plan)
        storage.start()
        again = storage.open(Cache(tmp_path / "cache", 1, retries=1))
        found += batches(again, plan, world=4, start=len(found))
        assert_equal(found, batches(local, plan))

    @pytest.mark.parametrize(("cut", "reason"), [(512, "bytes, but its set says"), (0, "SHA-256")])
    def test_a_truncated_and_a_flipped_object_are_said(self, storage, local, tmp_path, cut, reason):
        data = bytearray(local.shards[2].read_bytes())
        data[len(data) // 2] ^= 1
        storage.put(local.shards[2].name, bytes(data[: len(data) - cut]))
        index = storage.open(Cache(tmp_path / "cache", GIB))
        with pytest.raises(DamagedSampleError, match=reason) as error:
            batches(index, sequential_plan(len(index), 4))
        assert f"{storage.url}/{local.shards[2].name}" in str(error.value)

    def test_a_set_that_is_not_there_is_said(self, storage, tmp_path):
        with pytest.raises(ShardSetError, match=r"none.json: no such manifest"):
            open_sets([f"{storage.url}/none.json"], cache=Cache(tmp_path / "cache", GIB))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_plan_world_bound_and_resume_gives_the_local_bytes_once(data, folder, local):
    world = data.draw(st.sampled_from([1, 2, 4]), "world")
    size = data.draw(st.sampled_from([4, 8, 12]), "global batch")
    mode = data.draw(st.sampled_from(["single", "pair", "rotate"]), "mode")
    unit = 1 if mode == "single" else 2
    if size % (world * unit):
        world = 1
    spec = PlanSpec(
        data.draw(st.integers(0, 99), "seed"),
        size,
        mode,
        block_shards=data.draw(st.integers(0, 4), "block"),
        tail=data.draw(st.sampled_from(["drop", "mask"]), "tail"),
    )
    plan = epoch_plan(local, spec, data.draw(st.integers(0, 3), "epoch"))
    cut = data.draw(st.integers(0, len(plan)), "resume at")
    again = data.draw(st.sampled_from([w for w in (1, 2, 4) if size % (w * unit) == 0]), "world after")
    bound = data.draw(st.sampled_from([1, shard_bytes(local), 4 * shard_bytes(local), GIB]), "cache bound")
    with TemporaryDirectory() as cache, serving(folder) as server:
        index = open_sets([f"{server.url}/demo.json"], cache=Cache(Path(cache), bound))
        found = batches(index, plan, world=world, stop=cut) if cut else []
        found += batches(index, plan, world=again, start=cut)
        if bound == GIB and not cut:  # what an iterator that was closed had not finished comes again
            assert max(server.counts[shard.name] for shard in index.shards) <= 1
    assert_equal(found, batches(local, plan))
    ids = plan.ids[plan.valid]
    if mode == "single":
        assert len(np.unique(ids)) == len(ids)


RANK = """
import hashlib, sys
from pathlib import Path
from dfdet.data.cache import Cache
from dfdet.data.index import open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import PlanSpec, epoch_plan
url, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
index = open_sets([url], cache=Cache(Path(folder), 2**30))
plan = epoch_plan(index, PlanSpec(1, 8, "single"), 0)
loader = Loader(index, crop_scale=1.3, augment=None, seed=0, threads=2, prefetch=2, on_damage="raise",
                max_damaged=0)
for batch in loader.batches(plan, epoch=0, rank=rank, world=2):
    print(batch.ids.tolist(), hashlib.sha256(batch.images.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_ranks_share_one_cache_and_fetch_each_file_once(folder, local, tmp_path):
    with serving(folder) as server:
        server.pause_s = 0.02
        arguments = [f"{server.url}/demo.json", str(tmp_path / "cache")]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, *arguments, str(rank)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        lines = [rank.communicate()[0].splitlines() for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
        assert {name: n for name, n in server.counts.items() if n != 1} == {"demo.json": 2}
        assert len(server.counts) == len(local.shards) + 2
    plan = epoch_plan(local, PlanSpec(1, 8, "single"), 0)
    assert [len(found) for found in lines] == [len(plan)] * 2
    for row, pair in enumerate(zip(*lines, strict=True)):
        assert [line.partition("]")[0] + "]" for line in pair] == [
            str(half.tolist()) for half in np.split(plan.ids[row], 2)
        ]


class TestDamage:
    """An object that is gone or changed takes all its samples with it."""

    @pytest.fixture
    def opened(self, own, tmp_path):
        with serving(own) as server:
            yield server, open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "cache", GIB))

    def damage(self, own: Path, name: str, how: str) -> None:
        path = own / name
        if how == "gone":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(path.read_bytes()[:-512])
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)

    @pytest.mark.parametrize("how", ["gone", "truncated", "flipped"])
    def test_raise_is_one_clear_line(self, opened, own, how):
        server, index = opened
        self.damage(own, index.shards[1].name, how)
        with loader_of(index) as loader, pytest.raises(DamagedSampleError) as error:
            list(loader.batches(sequential_plan(len(index), 4), epoch=0, rank=0, world=1))
        text = str(error.value)
        reason = {
            "gone": "no such object: it was removed",
            "truncated": "bytes, but its set says",
            "flipped": "SHA-256",
        }
        assert reason[how] in text and index.shards[1].url in text and "\n" not in text
        assert server.counts[index.shards[1].name] == 1

    @pytest.mark.parametrize("how", ["gone", "truncated", "flipped"])
    def test_skip_masks_and_counts_all_its_samples_with_one_request(self, opened, own, how):
        server, index = opened
        self.damage(own, index.shards[1].name, how)
        with loader_of(index, on_damage="skip") as loader:
            found = list(loader.batches(sequential_plan(len(index), 4), epoch=0, rank=0, world=1))
        valid = torch.cat([batch.valid for batch in found])
        assert torch.nonzero(~valid).flatten().tolist() == np.flatnonzero(index.shard == 1).tolist()
        reason = "gone" if how == "gone" else "changed"
        assert loader.damaged == {reason: int((index.shard == 1).sum())}
        assert server.counts[index.shards[1].name] == 1

    def test_skipping_is_bounded(self, opened, own):
        _, index = opened
        self.damage(own, index.shards[0].name, "gone")
        with loader_of(index, on_damage="skip", max_damaged=2) as loader, pytest.raises(TrainingError):
            list(loader.batches(sequential_plan(len(index), 4), epoch=0, rank=0, world=1))

    def test_a_damaged_copy_is_found_removed_and_fetched_again(self, opened):
        server, index = opened
        plan = sequential_plan(len(index), 4)
        expected = batches(index, plan)
        copy = index.cache.folder / index.shards[0].sha256
        data = bytearray(copy.read_bytes())
        data[index.offset[0] + 5] ^= 1
        copy.write_bytes(data)
        with pytest.raises(DamagedSampleError, match="its copy, which was removed and will be fetched again"):
            batches(index, plan)
        assert_equal(batches(index, plan), expected)
        assert server.counts[index.shards[0].name] == 2


def test_a_dead_server_is_an_error_even_where_damage_is_skipped(own, tmp_path):
    with serving(own) as server:
        index = open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "cache", GIB, retries=1))
    with loader_of(index, on_damage="skip") as loader, pytest.raises(StorageError, match="2 times tried"):
        list(loader.batches(sequential_plan(8, 4), epoch=0, rank=0, world=1))


def test_closing_early_gives_transfers_up_and_ends_the_threads(own, tmp_path):
    with serving(own) as server:
        index = open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "cache", GIB, retries=100))
        server.status = {shard.name: 503 for shard in index.shards[1:]}
        with loader_of(index, prefetch=1) as loader:
            iterator = loader.batches(sequential_plan(len(index), 2), epoch=0, rank=0, world=1)
            with closing(iterator):
                next(iterator)
    gc.collect()
    assert not any("dfdet-" in thread.name for thread in threading.enumerate())


def test_nothing_stays_in_use_after_an_epoch(folder, tmp_path):
    with serving(folder) as server:
        cache = Cache(tmp_path / "cache", GIB)
        index = open_sets([f"{server.url}/demo.json"], cache=cache)
        batches(index, sequential_plan(len(index), 8))
        cache.max_bytes = 1
        cache._prepare()
        with cache._locked("room", None):
            cache._evict(GIB)
    assert [path.name for path in cache.folder.iterdir()] == ["locks"]


class TestFeed:
    """Looking ahead in plan order, within bounds."""

    class Calls(Reader):
        """Records instead of reading."""

        def __init__(self) -> None:
            super().__init__([])
            self.held: list[int] = []
            self.dropped: list[int] = []

        def hold(self, shard: int) -> None:
            self.held.append(shard)

        def drop(self, shard: int) -> None:
            self.dropped.append(shard)

    def feed(self, needs: list[list[int]], max_bytes: int, **options) -> tuple[Calls, Feed]:
        reader = self.Calls()
        made = Feed(
            reader,
            needs.__getitem__,
            range(len(needs)),
            size_of=lambda _: 10,
            max_bytes=max_bytes,
            **options,
        )
        made._pool._max_workers = 1
        return reader, made

    def test_shards_are_fetched_in_plan_order_up_to_the_bound(self):
        reader, feed = self.feed([[0], [0, 1], [2], [3]], max_bytes=30)
        feed.start(0)
        feed._pool.shutdown(wait=True)
        feed.close()
        assert reader.held == [0, 1, 2] and sorted(reader.dropped) == [0, 1, 2]

    def test_a_started_batch_has_its_shards_over_any_bound(self):
        reader, feed = self.feed([[0, 1, 2], [3]], max_bytes=1)
        feed.start(0)
        feed.start(1)
        feed._pool.shutdown(wait=True)
        feed.close()
        assert reader.held == [0, 1, 2, 3]

    def test_a_shard_is_dropped_when_no_batch_ahead_needs_it(self):
        reader, feed = self.feed([[0], [0, 1], [1], [2], [3]], max_bytes=20)
        for batch in range(3):
            feed.start(batch)
        feed.done(0)
        assert reader.dropped == []
        feed.done(1)
        feed._pool.shutdown(wait=True)
        assert reader.dropped == [0]
        feed.close()

    def test_more_shards_than_descriptors_are_fetched_but_not_held(self):
        reader, feed = self.feed([[0, 1, 2, 3]], max_bytes=100, max_shards=2)
        feed.start(0)
        feed._pool.shutdown(wait=True)
        assert reader.held == [0, 1, 2, 3] and reader.dropped == [2, 3]
        feed.done(0)
        feed.close()
        assert sorted(reader.dropped) == [0, 1, 2, 3]
