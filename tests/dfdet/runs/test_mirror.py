"""A run folder's copies and its objects on a real S3 server: order, interruptions, strangers."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.checkpoint import CheckpointState
from dfdet.config import Config
from dfdet.errors import RunFolderError
from dfdet.runs import objects
from dfdet.runs.checkpoint_mirror import CHECKPOINTS, CheckpointMirror
from dfdet.runs.linelog import LineLog
from dfdet.runs.mirror import METRICS, Mirror, SupersededError
from dfdet.runs.objects import Store, check_writable
from dfdet.runs.runfolder import read_metrics
from dfdet.schema import CropRecipe
from tests.dfdet.runs.s3 import BUCKET, s3_server

OWNED = ("log.txt", METRICS, "plots/")


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def key(request):
    """Of the run, in the bucket."""
    return f"runs/{request.node.name.replace('[', '-').replace(']', '')}"


class Counted(Store):
    """Notes what is written; from the ``fails``-th write on it is away."""

    def __init__(self, url: str, fails: int = 10**6) -> None:
        super().__init__(url)
        self.fails, self.done = fails, []

    def _note(self, *what: str) -> None:
        for each in what:
            if len(self.done) >= self.fails:
                raise OSError(5, "away")
            self.done.append(each)

    def put(self, name, data, **how):
        self._note(f"+{name}")
        super().put(name, data, **how)

    def put_file(self, name, source):
        self._note(f"+{name}")
        super().put_file(name, source)

    def remove(self, *names):
        for name in names:
            self._note(f"-{name}")
            super().remove(name)


class OnDisk(Counted):
    """The same in a local folder, for tests of many steps."""

    @property
    def _filesystem(self):
        return fsspec.filesystem("file", auto_mkdir=True)

    def _path(self, name):
        return f"{self.url}/{name}".rstrip("/")


def url(key: str) -> str:
    return f"s3://{BUCKET}/{key}"


def mirror_of(store: Store | str, folder: Path, **options) -> CheckpointMirror:
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    store = Store(url(store)) if isinstance(store, str) else store
    return CheckpointMirror(store, folder, owned=OWNED, **options)


def save(folder: Path, step: int, value: float | None = None) -> None:
    """A checkpoint and the record of its step, as training leaves them."""
    LineLog(folder / METRICS).append(f'{{"step": {step}}}')
    checkpoint.save(
        folder / CHECKPOINTS,
        state=CheckpointState(step=step, epoch=0, batch=step, fingerprint="f", seed=0, metric=value),
        trained={"w": torch.full((4,), float(step))},
        optimizer={"w": {"exp_avg": torch.zeros(4)}},
        config_json=Config().to_json(),
        crop=CropRecipe(template="demo", scale=1.6, size_px=96),
        backbone={"name": "tiny"},
    )


def resumed(store: Store | str, folder: Path) -> tuple[CheckpointState | None, int]:
    """What another process goes on from, and the last step that the metrics tell of."""
    mirror = mirror_of(store, folder)
    mirror.bring_checkpoints()
    mirror.bring(METRICS)
    found = checkpoint.latest_valid(folder / CHECKPOINTS)
    steps = [record["step"] for record in read_metrics(folder / METRICS)]
    return (checkpoint.load_state(found) if found else None), max(steps, default=0)


# ---- order


def test_a_checkpoint_comes_after_its_metrics_and_before_its_mark_and_a_pruned_one_goes_last(
    server, key, tmp_path
):
    store = Counted(url(key))
    mirror = mirror_of(store, tmp_path / "a")
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    store.done.clear()
    save(tmp_path / "a", 2)
    checkpoint.prune(tmp_path / "a" / CHECKPOINTS, keep_last=1)
    mirror.put_checkpoints()
    assert store.done[0] == f"+{METRICS}"
    step = f"{CHECKPOINTS}/step_00000002/"
    assert {name[1:] for name in store.done[1:7]} == {
        f"{step}{name}"
        for name in (
            *("backbone.json", "config.json", "crop.json", "state.json"),
            *("trained.safetensors", "optimizer.safetensors"),
        )
    }
    assert store.done[7:10] == [
        f"+{step}checksums.json",
        f"+{CHECKPOINTS}/last.json",
        f"-{CHECKPOINTS}/step_00000001/checksums.json",
    ]
    assert not [name for name in server.names(key) if "step_00000001" in name]


def test_what_has_not_changed_is_not_put_again(server, key, tmp_path):
    store = Counted(url(key))
    mirror = mirror_of(store, tmp_path / "a")
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    again = mirror_of(Counted(url(key)), tmp_path / "b")
    again.bring_checkpoints()
    again.bring(METRICS)
    for each in (mirror, again):
        each.store.done.clear()
        each.put_checkpoints()
        each.put_grown()
        assert each.store.done == []


def interrupted(folder: Path, store: Path, fails: int, case: str) -> tuple[CheckpointMirror, bool]:
    """A process that puts step 5, then a later or another checkpoint of that step, up to a write that fails.

    Gives whether none did.
    """
    mirror = mirror_of(OnDisk(str(store)), folder)
    save(folder, 5, value=0.5)
    mirror.put_checkpoints()
    mirror.store = OnDisk(str(store), fails)
    save(folder, 9 if case == "later" else 5, value=0.9)
    checkpoint.prune(folder / CHECKPOINTS, keep_last=1)
    try:
        mirror.put_checkpoints()
    except OSError:
        return mirror, False
    return mirror, True


@pytest.mark.parametrize("case", ["later", "same"])
def test_whatever_write_is_the_last_a_whole_checkpoint_with_its_metrics_is_left(tmp_path, case):
    whole, fails = False, 0
    while not whole:
        store = tmp_path / f"{fails}"
        _, whole = interrupted(tmp_path / f"{fails}-a", store, fails, case)
        state, last = resumed(OnDisk(str(store)), tmp_path / f"{fails}-b")
        assert state is not None
        assert state.metric in (0.5, 0.9)
        assert last >= state.step
        fails += 1
    assert state.metric == 0.9
    assert fails > 12


@pytest.mark.parametrize("case", ["later", "same"])
def test_whatever_write_fails_the_next_try_puts_all(tmp_path, case):
    whole, fails = False, 0
    while not whole:
        store = tmp_path / f"{fails}"
        mirror, whole = interrupted(tmp_path / f"{fails}-a", store, fails, case)
        mirror.store = OnDisk(str(store))
        mirror.put_checkpoints()
        left = {path.parent.name for path in (store / CHECKPOINTS).rglob("checksums.json")}
        assert left == {"step_00000009" if case == "later" else "step_00000005"}
        state, _ = resumed(OnDisk(str(store)), tmp_path / f"{fails}-b")
        assert state.metric == 0.9
        fails += 1
    assert fails > 12


@pytest.mark.parametrize("case", ["later", "same"])
def test_whatever_write_fails_the_next_process_puts_what_it_goes_on_with(tmp_path, case):
    whole, fails = False, 0
    while not whole:
        store, folder = tmp_path / f"{fails}", tmp_path / f"{fails}-b"
        _, whole = interrupted(tmp_path / f"{fails}-a", store, fails, case)
        second = mirror_of(OnDisk(str(store)), folder)
        second.bring_checkpoints()
        second.bring(METRICS)
        save(folder, 12, value=0.99)
        checkpoint.prune(folder / CHECKPOINTS, keep_last=1)
        second.put_checkpoints()
        state, last = resumed(OnDisk(str(store)), tmp_path / f"{fails}-c")
        assert (state.step, last) == (12, 12)
        left = [path for path in (store / CHECKPOINTS).rglob("*") if path.is_file()]
        assert {path.parent.name for path in left} == {CHECKPOINTS, "step_00000012"}
        fails += 1


def test_a_file_added_to_a_checkpoint_comes_before_the_list_that_names_it(server, key, tmp_path):
    store = Counted(url(key))
    mirror = mirror_of(store, tmp_path / "a")
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    store.done.clear()
    step = f"{CHECKPOINTS}/step_00000001"
    checkpoint.add_json(tmp_path / "a" / step, "threshold.json", {"threshold": 0.5})
    mirror.put_checkpoints()
    assert store.done == [f"+{step}/threshold.json", f"+{step}/checksums.json"]


# ---- what others have left


def test_a_process_that_others_have_replaced_puts_and_removes_nothing(server, key, tmp_path):
    server.put(f"{key}/ray/attempt", b"old.1")
    mirror = mirror_of(Counted(url(key)), tmp_path / "a", group="old.1")
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    server.put(f"{key}/ray/attempt", b"new.1")
    before = server.names(key)
    mirror.store.done.clear()
    save(tmp_path / "a", 2)
    checkpoint.prune(tmp_path / "a" / CHECKPOINTS, keep_last=1)
    (tmp_path / "a/log.txt").write_text("line\n")
    for put in (mirror.put_checkpoints, mirror.put_grown, lambda: mirror.put("log.txt")):
        with pytest.raises(SupersededError, match="belongs to later workers"):
            put()
    assert mirror.store.done == []
    assert server.names(key) == before
    assert (tmp_path / "a/ray/attempt").read_text() == "new.1"


def test_a_checkpoint_that_this_process_does_not_know_is_never_removed(server, key, tmp_path):
    mirror = mirror_of(key, tmp_path / "a")
    other = mirror_of(key, tmp_path / "b")
    save(tmp_path / "b", 7)
    other.put_checkpoints()
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    assert f"{CHECKPOINTS}/step_00000007/checksums.json" in server.names(key)


def test_what_an_interrupted_write_has_left_is_no_checkpoint_and_is_removed(server, key, tmp_path):
    server.put(f"{key}/{CHECKPOINTS}/step_00000003/state.json", b"{}")
    server.put(f"{key}/{CHECKPOINTS}/.new-step_00000002/state.json", b"{}")
    assert resumed(key, tmp_path / "a") == (None, 0)
    assert server.names(key) == []


@pytest.mark.parametrize(
    "name",
    ["../../../evil.json", "step_00000001/../../../evil.json", "/evil.json", "step_00000001/a/b.json"],
)
def test_a_strange_name_never_becomes_a_path(server, key, tmp_path, name, caplog):
    mirror = mirror_of(key, tmp_path / "a/b/c/run")
    save(tmp_path / "a/b/c/run", 1)
    mirror.put_checkpoints()
    server.put(f"{key}/{CHECKPOINTS}/{name}", b"evil")
    folder = tmp_path / "x/y/z/run"
    with caplog.at_level(logging.WARNING):
        state, _ = resumed(key, folder)
    assert state.step == 1
    assert {path.name for path in (folder / CHECKPOINTS).iterdir()} == {"step_00000001", "last.json"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"evil" in path.read_bytes()]


def test_a_reader_brings_one_checkpoint_and_tells_of_one_that_is_not_there(server, key, tmp_path):
    mirror = mirror_of(key, tmp_path / "a")
    save(tmp_path / "a", 1)
    save(tmp_path / "a", 2)
    mirror.put_checkpoints()
    reader = mirror_of(key, tmp_path / "b")
    reader.bring_checkpoint("step_00000001")
    assert [path.name for path in (tmp_path / "b" / CHECKPOINTS).iterdir()] == ["step_00000001"]
    assert checkpoint.problem(tmp_path / "b" / CHECKPOINTS / "step_00000001") is None
    with pytest.raises(FileNotFoundError, match="step_00000004: is not there"):
        reader.bring_checkpoint("step_00000004")


# ---- files that grow


def test_a_long_file_that_grows_is_put_less_often(server, key, tmp_path):
    mirror = mirror_of(Counted(url(key)), tmp_path)
    for name, size in (("log.txt", 10), (METRICS, 3 * 2**20)):
        (tmp_path / name).write_bytes(b"x" * size)
    mirror.put_grown()
    for name in ("log.txt", METRICS):
        with (tmp_path / name).open("ab") as file:
            file.write(b"y")
    mirror.store.done.clear()
    mirror.put_grown()
    assert mirror.store.done == ["+log.txt"]
    mirror.put_grown(at_once=True)
    assert mirror.store.done == ["+log.txt", f"+{METRICS}"]
    assert server.get(f"{key}/{METRICS}").endswith(b"xy")


def test_only_what_a_process_owns_is_put(server, key, tmp_path):
    mirror = mirror_of(key, tmp_path)
    for name in ("log.txt", "log-driver.txt", "plots/loss.png", "plots/.loss.png.tmp", "result.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "plots/link").symlink_to("/etc/hostname")
    mirror.put_grown()
    assert server.names(key) == ["log.txt", "plots/loss.png"]


def test_a_followed_file_grows_here_as_there_and_one_written_anew_replaces_it(server, key, tmp_path):
    mirror = Mirror(Store(url(key)), tmp_path, followed=("log.txt",))
    for content in (b"one\n", b"one\ntwo\n", b"one\ntwo\n", b"new\n"):
        server.put(f"{key}/log.txt", content)
        mirror.look()
        assert (tmp_path / "log.txt").read_bytes() == content


def test_a_watched_file_comes_by_itself_and_the_end_of_the_log_with_the_close(
    server, key, tmp_path, monkeypatch
):
    monkeypatch.setattr("dfdet.runs.mirror.POLL_S", 0.01)
    mirror = mirror_of(key, tmp_path, watched=("stop",))
    mirror.start()
    server.put(f"{key}/stop", b"SIGTERM")
    while not (tmp_path / "stop").exists():
        assert mirror._thread.is_alive()
    (tmp_path / "log.txt").write_text("the end")
    mirror.close()
    assert not mirror._thread.is_alive()
    assert server.get(f"{key}/log.txt") == b"the end"


def test_a_storage_that_was_away_gets_everything_once_it_is_back(server, key, tmp_path):
    mirror = mirror_of(key, tmp_path / "a")
    save(tmp_path / "a", 1)
    mirror.put_checkpoints()
    server.stop()
    try:
        save(tmp_path / "a", 2)
        with pytest.raises(OSError, match="Could not connect"):
            mirror.put_checkpoints()
    finally:
        server.start()
    mirror.put_checkpoints()
    shutil.rmtree(tmp_path / "a")
    state, last = resumed(key, tmp_path / "b")
    assert (state.step, last) == (2, 2)


# ---- objects


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("http://host/runs", "cannot be written to"),
        ("hf://datasets/o/n", "cannot be written to"),
        ("ftp://host/runs", "not a URL"),
        ("s3://", "cannot be written to"),
        ("s3://k:secret@bucket/runs", "holds a user or password"),
        ("s3://bucket/../other", r"'\.\.'"),
        ("s3://bucket/runs?versionId=3", "query"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused(place, why):
    with pytest.raises(RunFolderError, match=why) as caught:
        check_writable(place)
    assert "secret" not in str(caught.value)


def test_what_the_storage_says_is_an_error_of_the_system(server):
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        Store("s3://no-such-bucket/run").put("a", b"")


def test_a_condition_on_what_is_there_is_checked_by_the_storage(server, key):
    store = Store(url(key))
    store.put("a", b"1", new=True)
    with pytest.raises(FileExistsError):
        store.put("a", b"2", new=True)
    before = store.stat("a").version
    store.put("a", b"3", over=before)
    with pytest.raises(FileExistsError):
        store.put("a", b"4", over=before)
    with pytest.raises(FileNotFoundError):
        store.put("b", b"4", over=before)
    assert store.get("a") == b"3"
