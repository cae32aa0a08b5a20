"""``ray job submit`` on a real head: uploads, outputs, exit codes, last lines, stop, kill, resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import psutil
import pytest
import torch
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from dfdet.checkpoints import checkpoint
from dfdet.runs.ownership import Ownership
from dfdet.runs.runfolder import read_metrics
from tests.dfdet.serving.bundles import Made, make_once
from tests.ray_jobs.jobs import PATIENCE_S, ROOT, Head, Job, free_ports, job_words
from tests.shards.clips import files, write_ffpp

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS = 12
CODE = ("dfdet", "shards", "ray_jobs")
LEFT_BEHIND = (
    *("data/demo/train-000000.tar", "runs/gend/checkpoints/step_1/trained.safetensors", "sets/a.json"),
    *("shards/ffpp-train-000000.tar", "shards/ffpp-train.parquet", "elsewhere/clips/0.mp4", "a.tar"),
    *("detector.onnx", "weights/ViT-L-14.pt", "weights/face.pth", "GenD.ckpt", "bundle/model.pt2"),
    *(".venv/bin/python", ".git/objects/a", "dfdet-1.whl", "wandb/run-1/a", ".mypy_cache/a.json"),
    *("dfdet/__pycache__/cli.pyc", "evaluations/a/result.json", "predictions/scores.npz"),
)
PROBE = """
import json, os, ray
ray.init()
there = lambda: [os.environ.get("PYTHONDONTWRITEBYTECODE"), __import__("dfdet").__file__]
print(json.dumps([there(), ray.get(ray.remote(there).remote())]))
"""


@pytest.fixture
def upload(tmp_path: Path) -> set[str]:
    """What of a checkout with data, runs and weights in it is uploaded."""
    tree = tmp_path / "checkout"
    for name in CODE:
        shutil.copytree(ROOT / name, tree / name)
    for name in (".rayignore", "runtime_env.yaml"):
        shutil.copy(ROOT / name, tree)
    (tree / "space.yaml").write_text("replace: false\n")
    for name in LEFT_BEHIND:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        with (tree / name).open("wb") as file:
            file.truncate(64 << 20)
    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(tree), package, include_gitignore=False, excludes=excludes)
    with ZipFile(package) as found:
        return {info.filename for info in found.infolist() if not info.is_dir()}


def test_data_runs_and_weights_are_not_uploaded(upload: set[str]) -> None:
    assert not upload & set(LEFT_BEHIND)


def test_all_that_a_job_needs_is_uploaded(upload: set[str]) -> None:
    code = {
        path.relative_to(ROOT).as_posix()
        for name in CODE
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".parquet"
    }
    assert {"dfdet/serving/page.html", "dfdet/html/page.css", "dfdet/html/page.js"} <= code
    assert upload == code | {".rayignore", "runtime_env.yaml", "space.yaml"}


def test_ray_takes_the_runtime_environment() -> None:
    given = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert set(given) <= RuntimeEnv.known_fields
    assert RuntimeEnv(**given)["env_vars"] == {"PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("home"))
    yield started
    assert not started.end()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_once(tmp_path_factory)


def train_words(sets: dict[str, Path], name: str) -> list[str]:
    return [
        *("ray_jobs/train.py", "demo", "--run.name", name, "--run.workers", "1"),
        *("--data.train", str(sets["train"]), "--data.val", f"v={sets['val']}", "--data.test"),
        *(f"t={sets['test']}", "--data.global_batch", "8", "--model.image_size", "32"),
        *("--optim.epochs", str(EPOCHS), "--engine.log_every", "1", "--engine.checkpoint_every", "5"),
    ]


@pytest.fixture(scope="module")
def whole(head: Head, signal_sets: dict[str, Path]) -> Path:
    """Folder of an undisturbed run, submitted as a newcomer types it."""
    done = head.ray(
        "submit",
        *job_words("whole", "--runtime-env", "runtime_env.yaml"),
        *train_words(signal_sets, "whole"),
    )
    assert done.returncode == 0, done.stdout
    assert "Job 'whole' succeeded" in done.stdout
    return head.outputs / "runs" / "whole"


def at_step(run: Path, step: int) -> Callable[[], bool]:
    return lambda: any(record.get("step", 0) >= step for record in read_metrics(run / "metrics.jsonl"))


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    last = json.loads((run / "checkpoints/last.json").read_text())["checkpoint"]
    return checkpoint.load_tensors(run / "checkpoints" / last).trained


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_the_environment_and_the_code_reach_driver_and_workers(head: Head) -> None:
    job = head.submit("probe", "-c", PROBE, options=["--runtime-env", "runtime_env.yaml"])
    assert job.ended().driver_exit_code == 0, job.logs()
    for variable, file in json.loads(job.last_line()):
        assert variable == ""
        assert "working_dir_files" in file and not file.startswith(str(ROOT))


def test_a_run_leaves_its_outputs_in_the_home_folder(head: Head, whole: Path) -> None:
    details = Job(head, "whole").details()
    assert (details.status, details.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
    assert result_of(whole)["status"] == "finished"
    assert f"result: {whole}/result.json" in Job(head, "whole").logs()


def test_a_finished_run_submitted_again_prints_its_result(
    head: Head, whole: Path, signal_sets: dict[str, Path]
) -> None:
    job = head.submit_quickly("again", *train_words(signal_sets, "whole"))
    assert job.ended().driver_exit_code == 0
    assert f"{whole}: already finished; its result:" in job.logs()
    assert job.last_line() == f"result: {whole}/result.json"


def test_a_stopped_and_a_killed_run_go_on_to_the_same_end(
    head: Head, whole: Path, signal_sets: dict[str, Path]
) -> None:
    words, run = train_words(signal_sets, "run"), head.outputs / "runs/run"
    stopped = head.submit_quickly("stopped", *words)
    stopped.until(at_step(run, 20))
    assert stopped.stop().status == JobStatus.STOPPED
    head.until_gone("RayTrainWorker", "TrainController")
    saved = _last_step(run)
    assert saved >= 20 - 5  # the last periodic checkpoint, or a later one

    killed = head.submit_quickly("killed", *words)
    killed.until(at_step(run, 45))
    details = killed.kill()
    assert (details.status, details.driver_exit_code) == (JobStatus.FAILED, 137)
    head.until_gone("RayTrainWorker", "TrainController")
    assert f"resumed at step {saved} " in killed.logs()

    resumed = head.submit_quickly("resumed", *words)
    assert resumed.ended().driver_exit_code == 0, resumed.logs()
    assert "resumed at step " in resumed.logs()
    assert result_of(run)["metrics"] == result_of(whole)["metrics"]
    expected, found = last_weights(whole), last_weights(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def _last_step(run: Path) -> int:
    return int(json.loads((run / "checkpoints/last.json").read_text())["checkpoint"].removeprefix("step_"))


REFUSED = {
    "shard": ("--dataset ffpp --root nowhere --out sets", r"--root \S+/dfdet/nowhere is no folder; give"),
    "train": ("demo --optim.epoch 3", r"--optim\.epoch: no such field; did you mean --optim\.epochs\?"),
    "tune": (
        "demo --space a.yaml --data.train MADE",
        r"--space \S+/dfdet/a\.yaml: cannot be read",
    ),
    "evaluate": ("--checkpoint runs/none --test v=a.json", r"\S+/dfdet/a\.json: no such manifest: the set"),
    "predict": ("--checkpoint runs/none a.mp4", r"a\.mp4: no such file or folder in \S+/dfdet$"),
    "export": ("--checkpoint runs/none --out bundle", r"--checkpoint \S+/dfdet/runs/none: neither a ch"),
    "serve": ("--bundle nowhere", r"--bundle \S+/dfdet/nowhere: no bundle\.json in it; give a folder"),
}


@pytest.fixture(scope="module")
def refused(head: Head, signal_sets: dict[str, Path]) -> dict[str, Job]:
    sets = f"{signal_sets['train']} --data.val v={signal_sets['val']} --data.test t={signal_sets['test']}"
    return {
        name: head.submit_quickly(
            f"refused-{name}", f"ray_jobs/{name}.py", *words.replace("MADE", sets).split()
        )
        for name, (words, _) in REFUSED.items()
    }


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_code_2_and_one_line_at_the_end(name: str, refused: dict[str, Job]) -> None:
    details = refused[name].ended()
    assert (details.status, details.driver_exit_code) == (JobStatus.FAILED, 2), details.message
    line = refused[name].last_line()
    assert re.match("error: " + REFUSED[name][1], line), refused[name].logs()
    assert details.message.rstrip().endswith("\n" + line)


def test_status_and_submit_show_the_line(head: Head, refused: dict[str, Job]) -> None:
    refused["train"].ended()
    line = refused["train"].last_line()
    told = head.ray("status", "refused-train")
    assert told.returncode == 0  # that is Ray's way, also of failed jobs
    assert "failed with exit code 2" in told.stdout
    assert line in told.stdout.splitlines()


def test_a_run_in_use_is_refused_untouched(head: Head, signal_sets: dict[str, Path]) -> None:
    run = head.outputs / "runs/held"
    run.mkdir(parents=True)
    held = Ownership.take(run)
    before = sorted(path.name for path in run.iterdir())
    job = head.submit_quickly("second", *train_words(signal_sets, "held"))
    assert job.ended().driver_exit_code == 2
    assert job.last_line().startswith(
        f"error: run folder {run}: in use by process {os.getpid()} on {socket.gethostname()}"
    )
    assert sorted(path.name for path in run.iterdir()) == before
    held.release()


def test_stopped_sharding_goes_on_to_the_same_bytes(head: Head, made: Made, tmp_path: Path) -> None:
    given = f"--dataset ffpp --root {write_ffpp(tmp_path / 'ffpp')} --detector onnx --weights {made.weights}"
    words = ["ray_jobs/shard.py", *given.split(), "--frames", "24", "--size_px", "64", "--workers", "1"]
    expected = head.submit_quickly("shards", *words, "--out", "undisturbed")
    stopped = head.submit_quickly("shards-stopped", *words, "--out", "sharded")
    parts = (head.outputs / "sharded").glob
    stopped.until(lambda: len(list(parts(".*.parts/*.tar"))) >= 2)
    assert stopped.stop().status == JobStatus.STOPPED
    assert not list((head.outputs / "sharded").glob("*.json"))

    again = head.submit_quickly("shards-again", *words, "--out", "sharded")
    assert again.ended().driver_exit_code == 0, again.logs()
    assert expected.ended().driver_exit_code == 0, expected.logs()
    assert files(head.outputs / "sharded") == files(head.outputs / "undisturbed")
    assert str(head.outputs / "sharded/ffpp-c23-train.json") in again.logs()


def test_evaluation_prediction_and_export_leave_their_outputs(head: Head, made: Made) -> None:
    manifest = made.folder / "sets/own-val.json"
    words = {
        "evaluate": f"--test v={manifest} --out evaluated",
        "predict": f"{made.clips} --detector onnx --weights {made.weights} --workers 1 --out predicted",
        "export": "--crops 16 --out exported",
    }
    jobs = [
        head.submit_quickly(name, f"ray_jobs/{name}.py", "--checkpoint", str(made.checkpoint), *given.split())
        for name, given in words.items()
    ]
    for job in jobs:
        assert job.ended().driver_exit_code == 0, job.logs()
    out = head.outputs
    assert "v" in json.dumps(json.loads((out / "evaluated/result.json").read_text()))
    assert len((out / "predicted/predictions.jsonl").read_text().splitlines()) == 4
    assert (out / "exported/model.onnx").read_bytes() == (made.bundle / "model.onnx").read_bytes()
    assert [job.last_line() for job in jobs] == [
        f"result: {out / 'evaluated'}",
        f"results: {out / 'predicted'}",
        f"bundle: {out / 'exported'}",
    ]


def test_a_killed_server_leaves_no_replica(head: Head, made: Made) -> None:
    [port] = free_ports(1)
    given = f"--bundle {made.bundle} --detector onnx --weights {made.weights} --port {port}"
    server = head.submit_quickly("serve", "ray_jobs/serve.py", *given.split())
    server.until(lambda: f"serving at http://127.0.0.1:{port}" in server.logs())
    clip = (made.clips / "0.mp4").read_bytes()
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/predict",
        content=clip,
        headers={"Content-Type": "video/mp4"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200 and 0 <= answer.json()["files"][0]["score"] <= 1
    replicas = head.processes("ServeReplica")
    assert len(replicas) == 2
    assert server.kill().driver_exit_code == 137
    assert not psutil.wait_procs(replicas, timeout=PATIENCE_S)[1]
