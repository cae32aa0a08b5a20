"""Run folders behind a URL: claims, notices, results, working copies, and a whole training there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.fetched import local
from dfdet.checkpoints.opened import open_checkpoint
from dfdet.config import Config
from dfdet.errors import InputError, RunFolderError, TrainingError, WeightsError
from dfdet.runs import objects, patience
from dfdet.runs.mirror import SupersededError
from dfdet.runs.runfolder import CONTROLLER, FIRST_RANK, RunFolder, open_run
from tests.dfdet.runs.s3 import BUCKET, s3_server
from tests.dfdet.runs.test_mirror import save
from tests.signal_runs import config_for, run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.02)


@pytest.fixture
def storage(request):
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def key(request):
    return f"{request.node.name}/run"


@pytest.fixture
def config(tmp_path):
    return Config().replace({"data.cache_dir": str(tmp_path / "cache")})


def copies(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/runs").glob("*/*"))


@pytest.fixture
def begun(server, storage, config, tmp_path):
    """A run that was begun, has a checkpoint at step 4 and is nobody's."""
    folder, _ = RunFolder.claim(storage, "run", config, FIRST_RANK)
    save(folder.path, 4)
    folder.publish_checkpoints()
    folder.release()


# ---- claims


def test_a_claim_makes_a_run_that_is_named_by_its_url(server, storage, key, config):
    folder, status = RunFolder.claim(f"{storage}/", "run", config)
    assert (status, folder.place) == ("new", f"{storage}/run")
    assert folder.named(folder.checkpoints / "step_00000004") == f"{storage}/run/checkpoints/step_00000004"
    assert Config.model_validate(json.loads(server.get(f"{key}/config.json"))) == config
    folder.release()
    assert server.names(key) == ["config.json"]


def test_a_live_owner_refuses_and_leaves_no_copy(server, storage, config, tmp_path):
    folder, _ = RunFolder.claim(storage, "run", config)
    before = copies(tmp_path)
    with pytest.raises(
        RunFolderError, match=rf"{storage}/run: in use by process {os.getpid()} on .*--run\.name"
    ):
        RunFolder.claim(storage, "run", config)
    assert copies(tmp_path) == before
    folder.release()
    assert copies(tmp_path) == []


def test_a_run_with_a_checkpoint_is_resumed_with_it(begun, server, storage, config):
    folder, status = RunFolder.claim(storage, "run", config, FIRST_RANK)
    assert status == "resume"
    found = checkpoint.latest_valid(folder.checkpoints)
    assert checkpoint.load_state(found).step == 4
    assert json.loads(folder.metrics_jsonl.read_text()) == {"step": 4}
    folder.release()


def test_a_resume_under_another_config_is_refused_with_the_difference(begun, storage, config):
    with pytest.raises(RunFolderError, match=rf"{storage}/run: holds a run with another config \(optim\.lr"):
        RunFolder.claim(storage, "run", config.replace({"optim.lr": 1e-3}))


def test_a_run_without_a_checkpoint_is_begun_anew_under_any_config(server, storage, key, config):
    RunFolder.claim(storage, "run", config)[0].release()
    for name in ("metrics.jsonl", "result.json", "checkpoints/step_00000001/state.json"):
        server.put(f"{key}/{name}", b'{"status": "stopped"}')
    folder, status = RunFolder.claim(storage, "run", config.replace({"optim.lr": 1e-3}))
    folder.release()
    assert status == "new"
    assert server.names(key) == ["checkpoints/step_00000001/state.json", "config.json"]


def test_a_claim_clears_the_request_to_stop(begun, server, storage, key, config):
    server.put(f"{key}/stop", b"SIGTERM")
    folder, _ = RunFolder.claim(storage, "run", config)
    assert folder.stop_requested() is None
    assert server.get(f"{key}/stop") is None
    folder.release()


def test_a_finished_run_gives_its_result_and_needs_no_owner(begun, server, storage, key, config):
    server.put(f"{key}/result.json", b'{"status": "finished", "step": 4}')
    folder, status = RunFolder.claim(storage, "run", config)
    assert status == "finished"
    assert folder.read_result() == {"status": "finished", "step": 4}
    assert server.get(f"{key}/owner.json") is None
    folder.release()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("s3://no-such-bucket/runs", r"cannot be written \(The specified bucket does not exist\)"),
        ("https://host/runs", r"give a folder that all hosts see, s3://"),
    ],
)
def test_a_storage_that_cannot_be_written_is_one_line_with_a_remedy(server, config, place, why):
    with pytest.raises(RunFolderError, match=why) as caught:
        RunFolder.claim(place, "run", config)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is there")
def test_a_package_that_a_storage_needs_is_named(config):
    with pytest.raises(InputError, match="needs the package gcsfs"):
        RunFolder.claim("gs://bucket/runs", "run", config)


# ---- between processes


def test_each_process_has_a_copy_and_a_log_of_its_own(begun, server, storage, key, config, tmp_path):
    roles = {"rank-0": "log.txt", "rank-2": "log-rank-2.txt", CONTROLLER: "log-controller.txt"}
    opened = {role: open_run(f"{storage}/run", config.data.cache_dir, role) for role in roles}
    assert len({folder.path for folder in opened.values()}) == 3
    for role, folder in opened.items():
        folder.log_txt.write_text(role)
        folder.close()
    for role, log in roles.items():
        assert server.get(f"{key}/{log}") == role.encode()
    assert copies(tmp_path) == []


def test_a_process_goes_on_with_the_log_of_its_predecessor(begun, server, storage, key, config):
    for line in ("one\n", "two\n"):
        folder = open_run(f"{storage}/run", config.data.cache_dir, "rank-1")
        with folder.log_txt.open("a") as log:
            log.write(line)
        folder.close()
    assert server.get(f"{key}/log-rank-1.txt") == b"one\ntwo\n"


def test_a_rank_finds_a_checkpoint_that_the_first_one_made_meanwhile(begun, storage, config):
    first = open_run(f"{storage}/run", config.data.cache_dir, FIRST_RANK)
    other = open_run(f"{storage}/run", config.data.cache_dir, "rank-1")
    save(first.path, 8)
    first.publish_checkpoints()
    assert checkpoint.load_state(other.checkpoint("step_00000008")).step == 8
    with pytest.raises(RunFolderError, match=r"step_00000009: cannot be read"):
        other.checkpoint("step_00000009")
    first.close()
    other.close()


def test_a_request_to_stop_reaches_the_first_rank(begun, storage, config, monkeypatch):
    monkeypatch.setattr("dfdet.runs.mirror.POLL_S", 0.02)
    driver, _ = RunFolder.claim(storage, "run", config)
    first = open_run(f"{storage}/run", config.data.cache_dir, FIRST_RANK)
    driver.request_stop("SIGTERM")
    end = time.monotonic() + 60
    while first.stop_requested() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert first.stop_requested() == "SIGTERM"
    first.close()
    driver.release()


def test_the_driver_follows_log_and_metrics_to_their_end(begun, server, storage, key, config):
    driver, _ = RunFolder.claim(storage, "run", config)
    with driver.following():
        server.put(f"{key}/log.txt", b"the end\n")
    assert driver.run_log.read_text() == "the end\n"
    assert driver.log_txt.name == "log-driver.txt"
    driver.release()
    assert server.get(f"{key}/log.txt") == b"the end\n"


# ---- results


def test_the_result_comes_last(begun, server, storage, key, config):
    first = open_run(f"{storage}/run", config.data.cache_dir, FIRST_RANK)
    save(first.path, 8)
    (first.path / "log.txt").write_text("line\n")
    (first.plots / "loss.png").write_bytes(b"png")
    first.write_result({"status": "finished"})
    found = server.client.list_objects_v2(Bucket=BUCKET, Prefix=key)["Contents"]
    times = {each["Key"].removeprefix(f"{key}/"): each["LastModified"] for each in found}
    assert {"log.txt", "plots/loss.png", "checkpoints/step_00000008/checksums.json"} <= times.keys()
    assert max(times.values()) == times["result.json"]
    first.close()


def test_what_never_came_to_the_storage_stays_here(begun, server, storage, config, tmp_path, caplog):
    first = open_run(f"{storage}/run", config.data.cache_dir, FIRST_RANK)
    save(first.path, 8)
    server.stop()
    try:
        with pytest.raises(TrainingError, match=rf"{storage}/run \(what is not there lies in {first.path}\)"):
            first.write_result({"status": "finished"}, patience_s=0.1)
        first.close()
    finally:
        server.start()
    assert f"it lies in {first.path}" in caplog.text
    open_run(f"{storage}/run", config.data.cache_dir, "rank-1").close()
    assert json.loads((first.path / "result.json").read_text()) == {"status": "finished"}


def test_workers_that_were_replaced_keep_nothing_and_tell_nothing(
    begun, server, storage, key, config, tmp_path
):
    server.put(f"{key}/ray/attempt", b"a.1")
    first = open_run(f"{storage}/run", config.data.cache_dir, FIRST_RANK, "a.1")
    save(first.path, 8)
    server.put(f"{key}/ray/attempt", b"b.1")
    with pytest.raises(SupersededError):
        first.write_result({"status": "finished"})
    first.close()
    assert copies(tmp_path) == []
    assert server.get(f"{key}/result.json") is None


def test_copies_of_killed_processes_are_removed_and_those_of_living_ones_stay(
    begun, server, storage, config, tmp_path
):
    script = (
        "import sys, os, signal\nfrom dfdet.runs.runfolder import open_run\n"
        "open_run(sys.argv[1], sys.argv[2], 'rank-3')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = f"{storage}/run"
    subprocess.run([sys.executable, "-c", script, place, config.data.cache_dir], cwd=ROOT, check=False)
    assert [path.name[:6] for path in copies(tmp_path)] == ["rank-3"]
    living = open_run(place, config.data.cache_dir, "rank-1")
    open_run(place, config.data.cache_dir, "rank-2").close()
    assert [path.name[:6] for path in copies(tmp_path)] == ["rank-1"]
    living.close()


# ---- training and what comes of it


@pytest.fixture(scope="module")
def trained(server, signal_sets, tmp_path_factory):
    """URL of a run that was trained there."""
    cache = tmp_path_factory.mktemp("cache")
    storage = f"s3://{BUCKET}/trained"
    run(config_for(signal_sets, storage, **{"data.cache_dir": str(cache)}))
    assert not list((cache / "runs").glob("*/*"))
    return f"{storage}/run"


def test_a_run_there_equals_one_in_a_folder(trained, trained_run, server, tmp_path):
    there, here = (
        json.loads(text)
        for text in (server.get("trained/run/result.json"), (trained_run / "result.json").read_text())
    )
    assert there["metrics"] == here["metrics"]
    assert there["best_checkpoint"] == f"{trained}/checkpoints/{Path(here['best_checkpoint']).name}"
    names = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*") if path.is_file()}
    skipped = ("owner", "tensorboard/")
    assert {name for name in server.names("trained/run") if not name.startswith(skipped)} == {
        name for name in names if not name.startswith(skipped)
    }
    opened = open_checkpoint(local(trained, str(tmp_path)))
    assert opened.fingerprint == open_checkpoint(str(trained_run)).fingerprint
    assert opened.threshold == open_checkpoint(str(trained_run)).threshold


def test_a_named_checkpoint_is_brought_and_a_second_time_found(trained, server, tmp_path):
    step = json.loads(server.get("trained/run/checkpoints/last.json"))["checkpoint"]
    found = Path(local(f"{trained}/checkpoints/{step}/", str(tmp_path)))
    assert found.name == step
    assert checkpoint.problem(found) is None
    time_ns = found.stat().st_mtime_ns
    assert local(f"{trained}/checkpoints/{step}", str(tmp_path)) == str(found)
    assert found.stat().st_mtime_ns == time_ns


def test_a_copy_that_was_damaged_is_brought_again(trained, tmp_path):
    found = Path(local(trained, str(tmp_path)))
    (found / "trained.safetensors").write_bytes(b"damaged")
    assert checkpoint.problem(Path(local(trained, str(tmp_path)))) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"state.json": b"{}"}, "state.json fails its checksum"),
        ({"checksums.json": b'{"format_version": 1, "files": {"../../evil.json": {}}}'}, "unsafe name"),
        ({"checksums.json": b"none"}, "cannot be read as JSON"),
    ],
)
def test_a_damaged_checkpoint_is_refused(trained, server, tmp_path, change, why):
    step = json.loads(server.get("trained/run/checkpoints/best.json"))["checkpoint"]
    kept = {name: server.get(f"trained/run/checkpoints/{step}/{name}") for name in change}
    try:
        for name, data in change.items():
            server.put(f"trained/run/checkpoints/{step}/{name}", data)
        with pytest.raises(WeightsError, match=why):
            local(f"{trained}/checkpoints/{step}", str(tmp_path))
    finally:
        for name, data in kept.items():
            server.put(f"trained/run/checkpoints/{step}/{name}", data)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (f"s3://{BUCKET}/nothing", "neither a checkpoint"),
        ("s3://no-such-bucket/run", "bucket does not exist"),
        ("https://host/run", "no checkpoint can be fetched from there"),
        ("s3://k:secret@bucket/run", "holds a user or password"),
    ],
)
def test_a_source_without_a_checkpoint_is_refused_in_a_line(server, tmp_path, source, why):
    with pytest.raises(WeightsError, match=why) as caught:
        local(source, str(tmp_path))
    assert str(caught.value).startswith("--checkpoint ")
    assert "secret" not in str(caught.value)
