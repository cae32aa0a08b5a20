import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dfdet.config import Config, from_json
from dfdet.errors import RunFolderError, TrainingError
from dfdet.runs import linelog, ownership, runfolder
from dfdet.runs.atomic import write_json_atomic
from dfdet.runs.runfolder import RunFolder, changed_fields, default_name, may_change, read_metrics


def _with_checkpoint(folder):
    (folder.checkpoints / "step_00000001").mkdir(parents=True)
    return folder


@pytest.fixture
def interrupted(tmp_path):
    """A run that has a checkpoint and no owner."""
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    folder.release()
    return _with_checkpoint(folder)


def _owner(**changes):
    return ownership.Owner.here().model_copy(update={"token": "another", **changes})


def _record_owner(folder, owner, age_seconds=0.0):
    path = folder.path / "owner.json"
    write_json_atomic(path, owner.model_dump())
    then = time.time() - age_seconds
    os.utime(path, (then, then))


# ---- claims


def test_new_folder_holds_the_config(tmp_path):
    config = Config().replace({"optim.lr": 1e-3})
    folder, status = RunFolder.claim(tmp_path / "deep" / "runs", "run", config)
    assert status == "new"
    assert from_json(folder.config_json) == config
    assert folder.plots.is_dir()
    assert folder.checkpoints.is_dir()
    folder.release()


def test_run_with_a_checkpoint_resumes(interrupted):
    folder, status = RunFolder.claim(interrupted.path.parent, "run", Config())
    assert status == "resume"
    folder.release()


def test_run_that_failed_resumes(interrupted):
    interrupted.write_result({"status": "failed"})
    folder, status = RunFolder.claim(interrupted.path.parent, "run", Config())
    assert status == "resume"
    folder.release()


def test_finished_run_is_returned_without_an_owner(interrupted):
    interrupted.write_result({"status": "finished", "metrics": {}})
    folder, status = RunFolder.claim(interrupted.path.parent, "run", Config())
    assert status == "finished"
    assert not (folder.path / "owner.json").exists()


def test_finished_run_of_another_config_is_not_passed_off_as_this_one(interrupted):
    interrupted.write_result({"status": "finished"})
    with pytest.raises(RunFolderError, match=r"optim\.lr: 0\.0003 -> 0\.001"):
        RunFolder.claim(interrupted.path.parent, "run", Config().replace({"optim.lr": 1e-3}))


def test_run_without_a_checkpoint_begins_anew_under_any_config(tmp_path):
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    folder.append_metrics({"step": 1})
    folder.release()
    config = Config().replace({"optim.lr": 1e-3})
    folder, status = RunFolder.claim(tmp_path, "run", config)
    assert status == "new"
    assert from_json(folder.config_json) == config
    assert not folder.metrics_jsonl.exists()
    folder.release()


def test_fields_that_may_not_change_are_all_named_with_the_remedy(interrupted):
    config = Config().replace({"optim.lr": 1e-3, "data.train": ("b.json",), "engine.zero_stage": 2})
    with pytest.raises(RunFolderError) as caught:
        RunFolder.claim(interrupted.path.parent, "run", config)
    message = str(caught.value)
    assert "optim.lr: 0.0003 -> 0.001" in message
    assert 'data.train: [] -> ["b.json"]' in message
    assert "--run.name" in message
    assert "zero_stage" not in message
    assert from_json(interrupted.config_json) == Config()  # as it was
    assert not (interrupted.path / "owner.json").exists()  # free again


def test_fields_that_may_change_are_stored_anew(interrupted):
    config = Config().replace({"run.workers": 2, "engine.micro_batch": 8, "data.threads": 3})
    folder, status = RunFolder.claim(interrupted.path.parent, "run", config)
    assert status == "resume"
    assert from_json(folder.config_json) == config
    folder.release()


@pytest.mark.parametrize("text", [None, "no json", '{"optim": {"gone": 1}}'])
def test_unreadable_config_is_one_clear_error(interrupted, text):
    interrupted.config_json.unlink() if text is None else interrupted.config_json.write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.json.*--run\.name"):
        RunFolder.claim(interrupted.path.parent, "run", Config())


def test_unwritable_storage_names_path_cause_and_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"file/run: cannot be written \(Not a directory\).*--run\.storage"
    ):
        RunFolder.claim(tmp_path / "file", "run", Config())


def test_address_of_a_remote_storage_is_refused_rather_than_made_a_folder():
    with pytest.raises(RunFolderError, match="not a local path"):
        RunFolder.claim(Path("s3://bucket/runs"), "run", Config())


# ---- owners


def test_live_owner_is_named_with_host_pid_and_remedy(tmp_path):
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on .*--run\.name"):
        RunFolder.claim(tmp_path, "run", Config())
    folder.release()
    RunFolder.claim(tmp_path, "run", Config())[0].release()


def test_owner_here_without_its_process_is_gone_at_once(interrupted):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    _record_owner(interrupted, _owner(pid=child.pid, started="1"))
    RunFolder.claim(interrupted.path.parent, "run", Config())[0].release()


def test_pid_that_another_process_got_is_no_owner(interrupted):
    _record_owner(interrupted, _owner(started="1"))
    RunFolder.claim(interrupted.path.parent, "run", Config())[0].release()


def test_suspended_owner_on_this_host_stays_the_owner(interrupted):
    _record_owner(interrupted, _owner(), age_seconds=3600)
    with pytest.raises(RunFolderError, match="in use"):
        RunFolder.claim(interrupted.path.parent, "run", Config())


def test_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ownership.process_start(child.pid) is None
    child.wait()


@pytest.mark.parametrize(("age", "live"), [(30, True), (90, False)])
def test_owner_on_another_host_lives_by_its_heartbeat(interrupted, age, live):
    _record_owner(interrupted, _owner(machine="elsewhere", host="node7"), age)
    if live:
        with pytest.raises(RunFolderError, match="on node7"):
            RunFolder.claim(interrupted.path.parent, "run", Config())
    else:
        RunFolder.claim(interrupted.path.parent, "run", Config())[0].release()


def test_heartbeat_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.02)
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    path = folder.path / "owner.json"
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    folder.release()
    assert not path.exists()


def test_owner_that_was_replaced_stops_and_leaves_the_new_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.02)
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    _record_owner(folder, _owner(machine="elsewhere"))
    deadline = time.monotonic() + 10
    while not folder.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "taken" in folder.stop_requested()
    folder.release()
    assert (folder.path / "owner.json").exists()


def test_a_folder_that_is_moved_away_and_back_stays_its_owners(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.001)
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    for _ in range(100):
        folder.path.rename(tmp_path / "away")
        time.sleep(0.001)
        (tmp_path / "away").rename(folder.path)
        time.sleep(0.001)
    assert folder.stop_requested() is None
    assert len(caplog.records) <= 1  # a warning a minute, not one a heartbeat
    folder.release()
    assert not (folder.path / "owner.json").exists()


def test_a_release_while_the_storage_is_away_is_no_failure(tmp_path):
    folder, _ = RunFolder.claim(tmp_path, "run", Config())
    folder.path.rename(tmp_path / "away")
    folder.release()
    (tmp_path / "away").rename(folder.path)
    with pytest.raises(RunFolderError, match="in use"):  # until this process ends
        RunFolder.claim(tmp_path, "run", Config())


CLAIM = """
    import sys, time
    from pathlib import Path
    from dfdet.config import Config
    from dfdet.runs.runfolder import RunFolder
    RunFolder.claim(Path(sys.argv[1]), "run", Config())
    print("owned", flush=True)
    time.sleep(60)
"""


def test_killed_owner_frees_the_folder_at_once(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLAIM), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "owned\n"
    with pytest.raises(RunFolderError, match=str(child.pid)):
        RunFolder.claim(tmp_path, "run", Config())
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    RunFolder.claim(tmp_path, "run", Config())[0].release()


def _race(storage, barrier, owners, leave):
    barrier.wait()
    try:
        RunFolder.claim(storage, "run", Config())
        owners.put(True)
        leave.wait(30)  # holds it until all have tried
    except RunFolderError:
        owners.put(False)
    owners.close()
    owners.join_thread()
    os._exit(0)


def test_one_of_many_claims_at_once_wins(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier, owners, leave = fork.Barrier(8), fork.Queue(), fork.Event()
    children = [fork.Process(target=_race, args=(tmp_path, barrier, owners, leave)) for _ in range(8)]
    for child in children:
        child.start()
    results = [owners.get(timeout=60) for _ in children]
    leave.set()
    for child in children:
        child.join()
    assert sum(results) == 1


# ---- configs


def test_changed_fields_have_dotted_paths_and_leave_out_storage_and_name():
    new = Config().replace(
        {"run.name": "x", "run.storage": "y", "data.augment.blur": 0.2, "data.val": ("a=b",)}
    )
    assert changed_fields(Config(), new) == {"data.augment.blur": (0.1, 0.2), "data.val": ([], ["a=b"])}


@pytest.mark.parametrize("path", ["run.workers", "engine.zero_stage", "data.prefetch", "data.cache_dir"])
def test_what_may_change(path):
    assert may_change(path)


@pytest.mark.parametrize("path", ["run.seed", "engine.precision", "data.global_batch", "loss.ce", "optim.lr"])
def test_what_may_not_change(path):
    assert not may_change(path)


def test_default_name_is_recipe_and_utc_time():
    name = default_name("gend")
    assert time.strptime(name, "gend-%Y%m%d-%H%M%S")
    assert Config().replace({"run.name": name}).run.name == name


# ---- records


def test_metrics_are_json_lines_with_null_for_nan(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1, "a": float("nan"), "b": np.float32(0.5), "c": [np.inf, np.int64(2)]})
    folder.append_metrics({"step": 2})
    lines = folder.metrics_jsonl.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "a": None, "b": 0.5, "c": [None, 2]},
        {"step": 2},
    ]


def test_line_cut_short_by_a_kill_is_left_out_and_spoils_no_other(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_jsonl.write_text('{"step": 1}\n{"step": 2, "tr')
    folder.append_metrics({"step": 3})
    assert folder.metrics_jsonl.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_lines_of_a_storage_that_is_away_are_written_when_it_is_back_in_order_and_once(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.append_metrics({"step": 1})
    folder.path.rename(tmp_path / "away")
    for step in range(2, 5):
        folder.append_metrics({"step": step})
    assert folder.stop_requested() is None
    assert not folder.path.exists()
    with pytest.raises(TrainingError, match="No such file or directory"):
        folder.flush_metrics()
    (tmp_path / "away").rename(folder.path)
    folder.append_metrics({"step": 5})
    assert [record["step"] for record in read_metrics(folder.metrics_jsonl)] == [1, 2, 3, 4, 5]
    (warning,) = caplog.records
    assert "1 lines wait in memory" in warning.getMessage()


def test_what_a_full_disk_took_of_the_lines_is_neither_lost_nor_doubled(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1})
    pwrite, room = os.pwrite, [17]  # a line and a half

    def full(descriptor, data, offset):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count, room[0] = min(len(data), room[0]), max(0, room[0] - len(data))
        return pwrite(descriptor, bytes(data)[:count], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for step in (2, 3, 4):
            folder.append_metrics({"step": step})
        assert folder.metrics_jsonl.stat().st_size > 12
    folder.flush_metrics()
    assert folder.metrics_jsonl.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))


def test_lines_in_memory_are_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(linelog, "KEPT", 3)
    folder = RunFolder(tmp_path / "run")
    for step in range(5):
        folder.append_metrics({"step": step})
    folder.path.mkdir()
    folder.flush_metrics()
    assert [record["step"] for record in read_metrics(folder.metrics_jsonl)] == [2, 3, 4]


def test_a_resume_writes_the_final_record_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 2, "a": 1})
    folder.append_metrics({"step": 2, "final": True, "a": 1})
    folder.truncate_metrics(2)
    assert read_metrics(folder.metrics_jsonl) == [{"step": 2, "a": 1}]


def test_a_claim_clears_what_a_kill_within_a_write_left(interrupted):
    (interrupted.path / ".result.json.abcd.tmp").touch()
    folder, _ = RunFolder.claim(interrupted.path.parent, "run", Config())
    assert not list(folder.path.glob(".*"))
    folder.release()


def test_a_result_waits_for_a_storage_that_is_away(tmp_path):
    folder = RunFolder(tmp_path / "run")
    threading.Timer(0.2, folder.path.mkdir).start()
    folder.write_result({"status": "finished"}, patience_s=30)
    assert folder.read_result() == {"status": "finished"}


def test_truncation_drops_what_a_resume_writes_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.truncate_metrics(0)  # nothing there yet
    for step in range(5):
        folder.append_metrics({"step": step})
    folder.truncate_metrics(2)
    assert [record["step"] for record in read_metrics(folder.metrics_jsonl)] == [0, 1, 2]


def test_result_round_trip(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_result() is None
    folder.write_result({"status": "finished", "metrics": {"a": float("inf")}})
    assert folder.read_result() == {"status": "finished", "metrics": {"a": None}}


def test_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_json_atomic(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_stop_request_reaches_other_processes_and_a_claim_clears_it(interrupted):
    interrupted.request_stop("SIGTERM")
    assert RunFolder(interrupted.path).stop_requested() == "SIGTERM"
    folder, _ = RunFolder.claim(interrupted.path.parent, "run", Config())
    assert folder.stop_requested() is None
    folder.release()


def test_neither_torch_nor_ray_is_imported():
    code = (
        "import sys, dfdet.runs.runfolder;"
        "from dfdet.evaluation import metrics, threshold, plots;"
        "assert not {'torch', 'ray', 'sklearn', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_names_are_there():
    assert all(hasattr(runfolder, name) for name in runfolder.__all__)
