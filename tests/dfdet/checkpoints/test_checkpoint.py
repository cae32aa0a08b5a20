import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dfdet.checkpoints import checkpoint, checkpoint_format
from dfdet.checkpoints.checkpoint import CheckpointState
from dfdet.config import Config, from_json
from dfdet.errors import TrainingError, WeightsError
from dfdet.schema import CropRecipe

CROP = CropRecipe(template="demo", scale=1.6, size_px=96)
BACKBONE = {"name": "tiny", "pretrained": None, "frozen_sha256": "ab"}
SYSTEM_CALLS = ("fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir")


def _tensors(step):
    generator = torch.Generator().manual_seed(step)
    trained = {
        "tower.blocks.0.norm.weight": torch.randn(7, generator=generator),
        "head.weight": torch.randn(2, 7, generator=generator, dtype=torch.float64),
        "head.bias": torch.tensor([float("nan"), -0.0]),
        "count": torch.tensor(2**40 + step),
    }
    optimizer = {
        name: {
            "exp_avg": tensor.float() / 3,
            "exp_avg_sq": tensor.float() ** 2,
            "step": torch.tensor(float(step)),
        }
        for name, tensor in trained.items()
    }
    return trained, optimizer


def _save(folder, step, **changes):
    trained, optimizer = _tensors(step)
    fields = {"state": {}, "frozen": None, "extra": None} | changes
    state = {
        "step": step,
        "epoch": step // 10,
        "batch": step % 10,
        "fingerprint": "f00d",
        "seed": 3,
    } | fields.pop("state")
    return checkpoint.save(
        folder,
        state=CheckpointState(**state),
        trained=trained,
        optimizer=optimizer,
        config_json=Config().to_json(),
        crop=CROP,
        backbone=BACKBONE,
        **fields,
    )


def _bytes(tensors):
    return {
        name: (t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).tolist())
        for name, t in tensors.items()
    }


def _damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # not in place: it may be linked to another checkpoint's
    path.write_bytes(data)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- round trip


def test_round_trip_is_exact_to_the_bit(tmp_path):
    state = {
        "best_metric": 0.1 + 0.2,
        "best_step": 12,
        "metrics": {"val/a/video/ap": None},
        "world": {"size": 2},
    }
    path = _save(tmp_path, 12, state=state)
    trained, optimizer = _tensors(12)
    loaded = checkpoint.load_tensors(path)
    assert path == tmp_path / "step_00000012"
    assert _bytes(loaded.trained) == _bytes(trained)
    assert loaded.optimizer.keys() == optimizer.keys()
    assert all(_bytes(loaded.optimizer[name]) == _bytes(slots) for name, slots in optimizer.items())
    assert loaded.frozen is None
    expected = CheckpointState(step=12, epoch=1, batch=2, fingerprint="f00d", seed=3, **state)
    assert checkpoint.load_state(path) == expected
    assert checkpoint.load_crop(path) == CROP
    assert checkpoint.load_backbone(path) == BACKBONE
    assert from_json(path / "config.json") == Config()


def test_views_of_one_buffer_and_transposed_tensors_are_saved(tmp_path):
    buffer = torch.arange(12.0)
    trained = {"a": buffer[:6], "b": buffer[6:], "c": buffer.view(3, 4).T, "tied": buffer[:6]}
    state = CheckpointState(step=0, epoch=0, batch=0, fingerprint="", seed=0)
    arguments = {"optimizer": {}, "config_json": "{}", "crop": CROP, "backbone": {}}
    path = checkpoint.save(tmp_path, state=state, trained=trained, **arguments)
    loaded = checkpoint.load_tensors(path).trained
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


def test_folder_holds_the_files_of_the_contract(tmp_path):
    path = _save(tmp_path, 1, extra={"threshold.json": {"threshold": 0.5}})
    assert _names(path) == [
        "backbone.json",
        "checksums.json",
        "config.json",
        "crop.json",
        "optimizer.safetensors",
        "state.json",
        "threshold.json",
        "trained.safetensors",
    ]
    assert json.loads((tmp_path / "last.json").read_text()) == {"checkpoint": "step_00000001", "step": 1}


@pytest.mark.parametrize(
    "name", ["../x.json", "state.json", "x.txt", ".hidden.json", "a/b.json", "checksums.json"]
)
def test_unsafe_extra_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="extra file"):
        _save(tmp_path, 1, extra={name: {}})
    assert not list(tmp_path.glob("step_*"))


def test_metrics_that_are_nan_become_null(tmp_path):
    path = _save(tmp_path, 1, state={"metrics": {"a": float("nan")}})
    assert checkpoint.load_state(path).metrics == {"a": None}


def test_same_step_is_replaced(tmp_path):
    _save(tmp_path, 5)
    path = _save(tmp_path, 5, state={"bad_steps": 4})
    assert checkpoint.load_state(path).bad_steps == 4
    assert _names(tmp_path) == ["last.json", "step_00000005"]


def test_no_pickle_anywhere():
    for module in (checkpoint, checkpoint_format):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imports = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        assert "pickle" not in imports
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {"torch.save", "torch.load"} & calls
        assert "pickle" not in names


# ---- frozen tensors


def test_frozen_tensors_are_stored_once(tmp_path):
    frozen = {"tower.weight": torch.arange(1000.0)}
    paths = [_save(tmp_path, step, frozen=frozen) for step in (1, 2, 3)]
    assert len({(path / checkpoint.FROZEN).stat().st_ino for path in paths}) == 1
    checkpoint.prune(tmp_path, 1)  # a link outlives what it was linked to
    assert torch.equal(checkpoint.load_tensors(paths[2]).frozen["tower.weight"], frozen["tower.weight"])


def test_other_or_damaged_frozen_tensors_are_written_anew(tmp_path):
    first = _save(tmp_path, 1, frozen={"w": torch.zeros(9)})
    second = _save(tmp_path, 2, frozen={"w": torch.ones(9)})
    assert torch.equal(checkpoint.load_tensors(first).frozen["w"], torch.zeros(9))
    _damage(second / checkpoint.FROZEN)
    third = _save(tmp_path, 3, frozen={"w": torch.ones(9)})
    assert torch.equal(checkpoint.load_tensors(third).frozen["w"], torch.ones(9))


def test_frozen_tensors_are_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    _save(tmp_path, 1, frozen={"w": torch.ones(9)})
    monkeypatch.setattr(os, "link", refuse)
    path = _save(tmp_path, 2, frozen={"w": torch.ones(9)})
    assert torch.equal(checkpoint.load_tensors(path).frozen["w"], torch.ones(9))


# ---- kills and full disks


def _killed_after(calls, work):
    """Runs work in a child that dies before its system call of that number; whether it died."""
    child = os.fork()
    if child == 0:
        left = [calls]
        for name in SYSTEM_CALLS:
            real = getattr(os, name)

            def counted(*args, real=real, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*args, **kwargs)

            setattr(os, name, counted)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def _every_kill(tmp_path, prepare, work):
    """A fresh folder for each point at which a kill interrupts the work, and one without."""
    died, calls = True, 0
    while died:
        folder = tmp_path / f"kill{calls}"
        prepare(folder)
        died = _killed_after(calls, lambda folder=folder: work(folder))
        yield folder
        calls += 1
    assert calls > 5


def test_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    steps = []
    frozen = {"w": torch.ones(50)}
    for folder in _every_kill(
        tmp_path, lambda f: _save(f, 1, frozen=frozen), lambda f: _save(f, 2, frozen=frozen)
    ):
        newest = checkpoint.latest_valid(folder)
        steps.append(checkpoint.load_state(newest).step)
        assert _bytes(checkpoint.load_tensors(newest).trained) == _bytes(_tensors(steps[-1])[0])
        assert checkpoint.resolve(folder) == newest
        assert not [name for name in _names(folder) if name.startswith(".")]  # no litter after a resume
        assert checkpoint.problem(_save(folder, 2, frozen=frozen)) is None
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_kill_at_any_point_of_a_replacement_leaves_the_old_or_the_new(tmp_path):
    found = []
    for folder in _every_kill(
        tmp_path,
        lambda f: _save(f, 1),
        lambda f: _save(f, 1, state={"bad_steps": 1}, extra={"more.json": {}}),
    ):
        found.append(checkpoint.load_state(checkpoint.latest_valid(folder)).bad_steps)
    assert found == sorted(found)
    assert set(found) == {0, 1}


def test_kill_at_any_point_of_a_prune_leaves_whole_checkpoints_only(tmp_path):
    def prepare(folder):
        for step in (1, 2, 3):
            _save(folder, step)

    for folder in _every_kill(tmp_path, prepare, lambda f: checkpoint.prune(f, 1)):
        assert checkpoint.latest_valid(folder).name == "step_00000003"
        assert all(checkpoint.problem(path) is None for path in folder.glob("step_*"))


def test_kill_at_any_point_of_adding_a_file_leaves_the_checkpoint_whole(tmp_path):
    def prepare(folder):
        _save(folder, 1, extra={"threshold.json": {"threshold": 0.5}})

    def work(folder):
        checkpoint.add_json(folder / "step_00000001", "threshold.json", {"threshold": 0.25})

    values = []
    for folder in _every_kill(tmp_path, prepare, work):
        path = folder / "step_00000001"
        assert checkpoint.problem(path) is None
        values.append(json.loads((path / "threshold.json").read_text())["threshold"])
    assert values == sorted(values, reverse=True)
    assert set(values) == {0.5, 0.25}


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    synced, fsync, rename = [], os.fsync, Path.rename

    def record(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def check(self, target):
        if self.name.startswith(".tmp-"):
            assert {*self.iterdir(), self} <= set(synced)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    _save(tmp_path.resolve(), 1)
    assert tmp_path.resolve() in synced


@pytest.mark.parametrize("writes", range(0, 10, 3))
def test_full_disk_is_one_clear_error_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, writes):
    earlier = _save(tmp_path, 1)
    left, fsync = [writes], os.fsync

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            TrainingError, match=r"step_00000002: cannot be written \(No space left on device\)"
        ):
            _save(tmp_path, 2)
    assert not list(tmp_path.glob(".*"))
    assert checkpoint.problem(earlier) is None
    assert checkpoint.latest_valid(tmp_path) in (earlier, tmp_path / "step_00000002")


# ---- the newest, the best


def test_damaged_newest_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog):
    first, second = _save(tmp_path, 1), _save(tmp_path, 2)
    _damage(second / checkpoint.TRAINED)
    assert checkpoint.latest_valid(tmp_path) == first
    assert "step_00000002: trained.safetensors fails its checksum" in caplog.text
    assert json.loads((tmp_path / "last.json").read_text())["step"] == 1


FILES = (
    "trained.safetensors",
    "optimizer.safetensors",
    "frozen.safetensors",
    "state.json",
    "config.json",
    "crop.json",
    "backbone.json",
    "threshold.json",
    "checksums.json",
)


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.unlink()  # not in place: it may be linked to another checkpoint's
    path.write_bytes(data)


def _cut(path):
    data = path.read_bytes()[:-1]
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda path, place=place: _flip(path, place) for place in (0, 0.3, 0.7, 1)),
        _cut,
        lambda path: (path.unlink(), path.touch()),
        Path.unlink,
    ],
    ids=["first byte", "early byte", "late byte", "last byte", "cut short", "empty", "missing"],
)
def test_any_damage_to_any_file_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    for number, name in enumerate(FILES):
        folder = tmp_path / str(number)
        parts = {"frozen": {"w": torch.ones(9)}, "extra": {"threshold.json": {"threshold": 0.5}}}
        first, second = _save(folder, 1, **parts), _save(folder, 2, **parts)
        damage(second / name)
        caplog.clear()
        assert checkpoint.latest_valid(folder) == first, name
        assert f"{second}" in caplog.text and "trying the one before" in caplog.text
        assert json.loads((folder / "last.json").read_text())["step"] == 1


def test_the_listing_is_covered_too(tmp_path):
    path = _save(tmp_path, 1)
    assert {entry.name for entry in path.iterdir()} - {"checksums.json"} == set(
        json.loads((path / "checksums.json").read_text())["files"]
    )


def test_newer_checkpoint_than_last_json_counts(tmp_path):
    _save(tmp_path, 1)
    stale = (tmp_path / "last.json").read_bytes()
    second = _save(tmp_path, 2)
    (tmp_path / "last.json").write_bytes(stale)
    assert checkpoint.latest_valid(tmp_path) == second


def test_steps_are_ordered_as_numbers(tmp_path):
    _save(tmp_path, 99_999_999)
    newest = _save(tmp_path, 100_000_000)
    assert checkpoint.latest_valid(tmp_path) == newest


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_none(tmp_path, exists):
    assert checkpoint.latest_valid(tmp_path if exists else tmp_path / "none") is None


def test_only_damaged_checkpoints_do_not_silently_begin_anew(tmp_path):
    _damage(_save(tmp_path, 1) / "state.json")
    with pytest.raises(WeightsError, match=r"state\.json fails its checksum.*remove the folder"):
        checkpoint.latest_valid(tmp_path)


def test_checkpoint_of_a_later_version_is_refused_by_name(tmp_path):
    path = _save(tmp_path, 1)
    listing = json.loads((path / "checksums.json").read_text())
    (path / "checksums.json").write_text(json.dumps(listing | {"format_version": 2}))
    with pytest.raises(WeightsError, match="format version 2 is not 1"):
        checkpoint.load_tensors(path)


def test_unsafe_names_in_checksums_are_refused(tmp_path):
    path = _save(tmp_path, 1)
    listing = json.loads((path / "checksums.json").read_text())
    listing["files"]["../../secret"] = {"sha256": "", "bytes": 0}
    (path / "checksums.json").write_text(json.dumps(listing))
    with pytest.raises(WeightsError, match="unsafe name"):
        checkpoint.load_tensors(path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "step_1", 7])
def test_unsafe_names_in_best_json_are_refused(tmp_path, name):
    _save(tmp_path, 1)
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": name}))
    with pytest.raises(WeightsError, match=r"best\.json"):
        checkpoint.resolve(tmp_path)


def test_damaged_tensors_are_not_loaded(tmp_path):
    path = _save(tmp_path, 1)
    _damage(path / checkpoint.OPTIMIZER)
    with pytest.raises(WeightsError, match=r"optimizer\.safetensors fails its checksum"):
        checkpoint.load_tensors(path)


def test_prune_keeps_newest_best_and_last(tmp_path):
    paths = [_save(tmp_path, step) for step in range(1, 7)]
    checkpoint.mark_best(tmp_path, paths[1], "val/a/video/ap", 0.9)
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": paths[2].name, "step": 3}))
    checkpoint.prune(tmp_path, 2)
    kept = [f"step_0000000{step}" for step in (2, 3, 5, 6)]
    assert _names(tmp_path) == ["best.json", "last.json", *kept]


def test_prune_keeps_as_many_best_as_asked_by_the_metric_in_their_state(tmp_path):
    metrics = (0.9, 0.7, None, 0.8, 0.1, None)
    for step, metric in enumerate(metrics, start=1):
        _save(tmp_path, step, state={"metric": metric})
    checkpoint.prune(tmp_path, 1, keep_best=2)
    assert [name for name in _names(tmp_path) if name.startswith("step")] == [
        f"step_0000000{step}" for step in (1, 4, 6)
    ]


def test_a_state_of_before_there_was_a_metric_in_it_is_read(tmp_path):
    path = _save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state["metric"], state["metric_name"]
    (path / "state.json").write_text(json.dumps(state))
    assert checkpoint.load_state(path).metric is None


def test_litter_of_a_kill_within_a_json_write_goes_with_the_resume(tmp_path):
    path = _save(tmp_path, 1)
    for folder in (tmp_path, path):
        (folder / ".threshold.json.abcd.tmp").touch()
    checkpoint.latest_valid(tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_the_name_of_the_metric_comes_from_the_best_itself(tmp_path):
    _save(tmp_path, 1, state={"best_metric": 0.8, "best_step": 1, "metric": 0.8, "metric_name": "val/a/ap"})
    checkpoint.latest_valid(tmp_path)  # the kill came before the first best.json
    assert json.loads((tmp_path / "best.json").read_text())["metric"] == "val/a/ap"


def test_resolve_takes_the_best_else_the_last(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    first, second = _save(folder, 1), _save(folder, 2)
    assert checkpoint.resolve(tmp_path / "run") == second
    checkpoint.mark_best(folder, first, "val/a/video/ap", 0.9)
    assert checkpoint.resolve(tmp_path / "run") == checkpoint.resolve(folder) == first
    assert checkpoint.resolve(second) == second


def test_resolve_of_nothing_is_one_clear_error(tmp_path):
    with pytest.raises(WeightsError, match=r"--checkpoint .*neither"):
        checkpoint.resolve(tmp_path)


def test_kill_between_save_and_mark_is_made_good_on_resume(tmp_path):
    first = _save(tmp_path, 1, state={"best_metric": 0.8, "best_step": 1})
    checkpoint.mark_best(tmp_path, first, "val/a/video/ap", 0.8)
    second = _save(tmp_path, 2, state={"best_metric": 0.9, "best_step": 2})
    checkpoint.latest_valid(tmp_path)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"checkpoint": second.name, "step": 2, "metric": "val/a/video/ap", "value": 0.9}


def test_best_that_the_resumed_run_has_not_reached_is_forgotten(tmp_path):
    _save(tmp_path, 1)
    second = _save(tmp_path, 2, state={"best_metric": 0.9, "best_step": 2})
    checkpoint.mark_best(tmp_path, second, "val/a/video/ap", 0.9)
    _damage(second / checkpoint.TRAINED)
    first = checkpoint.latest_valid(tmp_path)
    assert checkpoint.resolve(tmp_path) == first
    shutil.rmtree(second)
    assert checkpoint.resolve(tmp_path) == first
