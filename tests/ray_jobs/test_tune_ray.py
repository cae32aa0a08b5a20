"""Sweeps on a real local Ray: a killed driver, a setting stopped early, places on (pretended) GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dfdet.cli import parse
from dfdet.recipes import demo
from dfdet.runs.runfolder import read_metrics
from dfdet.sweep.objective import Objective
from dfdet.sweep.options import Options
from dfdet.sweep.space.space import Space
from dfdet.sweep.study import Search, SweepStudy
from dfdet.sweep.sweeper import Sweeper

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SPACE = """
replace: true
dimensions:
  loss.uniformity: {low: 0.0, high: 1.0}
  optim.lr: {low: 1.0e-3, high: 5.0e-2, log: true}
"""


def command(sets: dict[str, Path], storage: Path) -> list[str]:
    space = storage / "space.yaml"
    space.write_text(SPACE)
    return [
        *(sys.executable, "ray_jobs/tune.py", "demo", "--space", str(space)),
        *("--trials", "4", "--concurrent", "2", "--final", "1", "--final_seeds", "1"),
        *("--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}"),
        *("--data.test", f"t={sets['test']}", "--data.global_batch", "8"),
        *("--model.image_size", "32", "--optim.epochs", "3"),
        *("--optim.min_lr", "1e-4", "--engine.log_every", "1"),
        *("--run.workers", "1", "--run.storage", str(storage), "--run.name", "sweep"),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trials(sweep: Path, name: str = "sweep") -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(sweep / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage).trials


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def kill_a_trial(driver: subprocess.Popen[str]) -> None:
    """Kills the process that a trial runs in, not those of its workers."""
    named = {
        process.pid: " ".join(process.cmdline())
        for process in psutil.Process(driver.pid).children(recursive=True)
    }
    os.kill(next(pid for pid, name in named.items() if "ImplicitFunc" in name), signal.SIGKILL)


def log_of(sweep: Path) -> str:
    return (sweep / "log.txt").read_text()


@pytest.mark.timeout(900)  # two drivers, seven trainings
def test_a_killed_driver_and_a_killed_trial_lose_no_setting_and_repeat_none(
    signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    driver = start(command(signal_sets, tmp_path))
    # in the middle of a training
    wait_for(lambda: any(len(read_metrics(path)) > 3 for path in sweep.glob("*/metrics.jsonl")), driver)
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {trial.number: trial.params for trial in trials(sweep) if trial.state != TrialState.WAITING}
    assert before

    again = start([sys.executable, "ray_jobs/tune.py", "--resume", "sweep", "--run.storage", str(tmp_path)])
    wait_for(lambda: any("resumed at" in path.read_text() for path in sweep.glob("*/log.txt")), again)
    kill_a_trial(again)
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output
    assert "its process died without a word: killed, or out of memory; it is taken up again" in log_of(sweep)
    found = trials(sweep)
    assert [trial.state for trial in found].count(TrialState.COMPLETE) >= 1
    assert {trial.state for trial in found} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(found) == 4
    assert {number: found[number].params for number in before} == before
    assert "resumed at step" in "".join(path.read_text() for path in sweep.glob("*/log.txt"))
    for trial in found:
        log = read_metrics(sweep / f"{trial.number:04d}" / "metrics.jsonl")
        steps = [record["step"] for record in log if "train/loss/total" in record]
        assert steps == sorted(set(steps))

    last = trials(sweep, "sweep-final")
    assert {trial.state for trial in last} == {TrialState.COMPLETE}
    assert {trial.user_attrs["seed"] for trial in last} == {1000}
    best = parse(["--config", str(sweep / "best.json")], "train.py")
    assert best.run.name is None
    named = {trial.user_attrs["setting"] for trial in last}
    assert best.optim.lr in {found[number].params["optim.lr"] for number in named}
    assert (sweep / "report.html").read_text(encoding="utf-8").startswith("<!")
    assert len((sweep / "trials.csv").read_text().splitlines()) == 5

    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


class Gpus:
    """What a trial runs in place of a training: its one worker notes the GPU that it was given."""

    def __call__(self, args: dict[str, Any]) -> None:
        from ray.train.backend import BackendConfig

        from dfdet.config import from_dict
        from ray_jobs.trainer import torch_trainer
        from ray_jobs.trial import claim

        [config] = map(from_dict, args["configs"])
        folder, _ = claim(config, 0.0)
        trainer = torch_trainer(config, folder, cuda=args["cuda"])
        trainer.train_loop_per_worker, trainer.backend_config = note_gpu, BackendConfig()
        trainer.fit()
        folder.write_result({"status": "finished", "metrics": {"val/demo/video/auroc": 0.5}})
        folder.release()


def note_gpu(args: dict[str, Any]) -> None:
    import ray

    begun = time.time()
    time.sleep(2.0)
    note = {"gpus": ray.get_gpu_ids(), "begun": begun, "ended": time.time()}
    (Path(args["folder"]) / "note.json").write_text(json.dumps(note))


@pytest.fixture
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    import ray

    from ray_jobs.cluster import QUIET

    before = dict(os.environ)
    os.environ.update(QUIET)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield ray.cluster_resources()
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def test_settings_side_by_side_never_share_a_gpu(two_gpus: dict[str, float], tmp_path: Path) -> None:
    from ray_jobs.sweeping import concurrency, run_sweep

    base = demo().replace({"run.workers": 1, "run.device": "cuda", "run.name": "sweep"})
    space = Space.model_validate({"dimensions": {"loss.uniformity": {"low": 0.0, "high": 1.0}}})
    folder, goal = tmp_path / "sweep", [Objective("val/demo/video/auroc")]
    header = {"base": base.model_dump(mode="json"), "space": {}, "options": {}}
    studies = [
        SweepStudy.open(folder, None, name=name, objectives=goal, header=header, search=search)
        for name, search in (("sweep", Search(base, space)), ("sweep-final", None))
    ]
    sweeper = Sweeper(folder, base, Options(trials=3, final=0), goal, *studies)
    concurrent = concurrency(base, 0, two_gpus, cuda=True)
    failure = run_sweep(sweeper, concurrent, cuda=True, train=Gpus())
    found = [trial.state for trial in studies[0].trials()]
    for study in studies:
        study.close()
    assert failure is None
    assert concurrent == 2
    assert found == [TrialState.COMPLETE] * 3
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob("*/note.json"))]
    assert [len(note["gpus"]) for note in notes] == [1, 1, 1]
    for one in notes:
        for other in notes:
            together = one["begun"] < other["ended"] and other["begun"] < one["ended"]
            assert one is other or not together or one["gpus"] != other["gpus"]
