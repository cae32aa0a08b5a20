"""``python -m dfdet``: results, exit codes, signals, groups, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfdet import local
from dfdet.config import Config
from dfdet.errors import ConfigError, ShardSetError
from dfdet.interrupts import Interrupts
from dfdet.runs.runfolder import read_metrics
from dfdet.runs.summary import show_result

ROOT = Path(__file__).parents[2]


def command(sets, storage, *more):
    return [
        *("demo", "--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}"),
        *("--data.test", f"t={sets['test']}", "--data.global_batch", "8", "--model.image_size", "32"),
        *("--engine.log_every", "1", "--optim.epochs", "1", "--run.device", "cpu"),
        *("--run.storage", str(storage), "--run.name", "run", *more),
    ]


def start(arguments, launcher=(sys.executable,), **options):
    return subprocess.Popen(
        [*launcher, "-m", "dfdet", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(arguments, **options):
    """Exit code, stdout, stderr."""
    process = start(arguments, **options)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def torchrun(count):
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count))


def last_line(text):
    return text.strip().splitlines()[-1]


# ---- the program


def test_one_process_trains_and_prints_its_log_and_its_result_and_again_only_the_result(
    signal_sets, tmp_path
):
    arguments = command(signal_sets, tmp_path, "--run.workers", "1")
    code, out, err = run(arguments)
    assert code == 0, err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "finished" and result["world_size"] == 1
    assert f"step {result['step']}/{result['step']}  loss " in out
    assert f"test/t/video/auroc = {result['metrics']['test/t/video/auroc']:.4f}" in out
    assert " I step 1/" in (tmp_path / "run/log.txt").read_text()
    assert not (tmp_path / "run/owner.json").exists()

    code, out, err = run(arguments)
    assert (code, err) == (0, "")
    assert "already finished" in out and "test/t/video/auroc = " in out and "step 1/" not in out


@pytest.mark.slow
def test_torchrun_starts_a_group_and_a_signal_leaves_a_checkpoint_to_go_on_from(signal_sets, tmp_path):
    arguments = command(signal_sets, tmp_path, "--optim.epochs", "30")
    process = start(arguments, torchrun(2))
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 150
    while not read_metrics(metrics) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGTERM)  # the second alone: all stop together
    out, err = process.communicate(timeout=150)
    assert "stopped (another worker was asked to stop); go on with --run.name run" in out, err
    assert "exitcode  : 143" in err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "stopped"
    assert (tmp_path / f"run/checkpoints/step_{result['step']:08d}").is_dir()
    assert not (tmp_path / "run/owner.json").exists()


def test_a_signal_to_a_lone_process_is_its_exit_code(signal_sets, tmp_path):
    process = start(command(signal_sets, tmp_path, "--run.workers", "1", "--optim.epochs", "100"))
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, "")
    assert last_line(out) == "stopped (SIGINT); go on with --run.name run"


def test_a_missing_set_is_one_line_and_leaves_no_folder(signal_sets, tmp_path):
    sets = signal_sets | {"train": tmp_path / "none.json"}
    code, out, err = run(command(sets, tmp_path, "--run.workers", "1"))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "none.json" in err
    assert not (tmp_path / "run").exists()


def test_a_failure_in_training_is_one_line_of_one_rank(signal_sets, tmp_path):
    hostile = ("--optim.lr", "1", "--optim.schedule", "constant", "--model.scale", "256")
    hostile += ("--model.head", "cosine", "--loss.ce", "3e38", "--run.workers", "1")
    code, _, err = run(command(signal_sets, tmp_path, *hostile))
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "non-finite" in err and f"(log: {tmp_path}/run/log.txt)" in err
    assert "Traceback" in (tmp_path / "run/log.txt").read_text()
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"


# ---- its parts


def test_a_lone_process_is_told_how_to_start_two():
    problem = local.workers_problem(Config().replace({"run.workers": 2}), world=1)
    assert problem is not None
    assert "run.workers=2: this is one process" in problem
    assert "torchrun --nproc_per_node 2 -m dfdet" in problem and "--run.workers 1" in problem


@pytest.mark.parametrize(
    ("workers", "world", "fits"), [(1, 1, True), (2, 2, True), ((1, 4), 2, True), ((2, 4), 3, False)]
)
def test_the_processes_must_be_those_of_the_config(workers, world, fits):
    config = Config().replace({"run.workers": workers, "data.global_batch": 8})
    assert (local.workers_problem(config, world) is None) is fits


def test_a_demo_set_that_is_not_built_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = local.with_absolute_paths(Config().replace({"data.train": ("data/demo/train.json",)}))
    with pytest.raises(ShardSetError, match="python -m shards demo --out data/demo"):
        local.check_demo_is_built(config)


def test_paths_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"data.train": ("a.json", "https://host/b.json"), "data.val": ("v=c.json",)}
    config = local.with_absolute_paths(Config().replace({**values, "run.storage": "runs"}))
    assert config.data.train == (f"{tmp_path}/a.json", "https://host/b.json")
    assert config.data.val == (f"v={tmp_path}/c.json",)
    assert config.run.storage == f"{tmp_path}/runs"


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 1 of this machine has no GPU .*--run\.device cpu"):
        local.device_of(Config().replace({"run.device": "auto"}))
    assert local.device_of(Config().replace({"run.device": "cpu"})) == "cpu"


class Stop:
    stop: str | None = None


def test_a_signal_before_training_ends_the_process_and_then_asks():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts, context = Interrupts(), Stop()
    interrupts.install()
    try:
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        interrupts.ask(context)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same one, passed on by torchrun
        assert (context.stop, interrupts.number) == ("SIGTERM", 15)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_summary_has_a_row_a_set_and_level(capsys):
    metrics = {"val/v/frame/auroc": 0.25, "test/t/video/auroc": 0.5, "test/t/video/eer": None}
    show_result({"metrics": metrics, "best_checkpoint": "c", "checkpoint_bytes": {}}, Path("r/result.json"))
    out = capsys.readouterr().out
    assert "val/v frame" in out and "0.2500" in out and "test/t video" in out
    assert "test/t/video/auroc = 0.5000" in out and "result: r/result.json" in out
