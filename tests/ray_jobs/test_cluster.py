"""Whether a run fits, in plain arithmetic, and what paths mean in a Ray job."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from dfdet.config import Config, Data, Run
from dfdet.errors import ConfigError, ShardSetError
from ray_jobs import cluster
from ray_jobs.cluster import (
    RayLostError,
    absolute,
    check_answers,
    check_fits,
    check_local,
    check_resources,
    input_file,
    joins_cluster,
    with_config_file,
)
from ray_jobs.preflight import with_absolute_paths


@pytest.fixture(autouse=True)
def no_ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "DFDET_HOME"):
        monkeypatch.delenv(name, raising=False)


def config(batch: int = 64, **run: Any) -> Config:
    return Config(run=Run(**run), data=Data(global_batch=batch, sampling="single"))


def refusal(run: Run, available: dict[str, float], *kinds: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fits(run, available, kinds)
    return str(caught.value)


def test_a_run_that_takes_all_cpus_fits() -> None:
    check_fits(Run(workers=4, cpus_per_worker=0.5), {"CPU": 2.0}, ("CPU",))


def test_more_workers_than_cpus_are_refused_with_the_arithmetic() -> None:
    assert refusal(Run(workers=5), {"CPU": 2.0}, "CPU") == (
        "run.workers=5: 5 x 1 CPU = 5, but Ray has 2 CPU; set --run.workers 2 or --run.cpus_per_worker 0.4"
    )


def test_a_worker_larger_than_the_machine_is_told_what_it_can_have() -> None:
    assert refusal(Run(workers=1, cpus_per_worker=8), {"CPU": 2.0}, "CPU") == (
        "run.workers=1: 1 x 8 CPU = 8, but Ray has 2 CPU; set --run.cpus_per_worker 2"
    )


@pytest.mark.parametrize("workers", [3, 5, 7, 150])
def test_the_cpus_that_are_named_fit(workers: int) -> None:
    said = refusal(Run(workers=workers), {"CPU": 2.0}, "CPU")
    check_fits(Run(workers=workers, cpus_per_worker=float(said.split()[-1])), {"CPU": 2.0}, ("CPU",))


def test_more_workers_than_gpus_are_refused_with_the_arithmetic() -> None:
    assert refusal(Run(workers=4), {"CPU": 8.0, "GPU": 2.0}, "CPU", "GPU") == (
        "run.workers=4: 4 x 1 GPU = 4, but Ray has 2 GPU; set --run.workers 2 or --run.device cpu"
    )


def test_of_elastic_workers_only_the_fewest_must_fit() -> None:
    check_fits(Run(workers=(2, 8)), {"CPU": 2.0}, ("CPU",))
    assert refusal(Run(workers=(4, 8)), {"CPU": 2.0}, "CPU") == (
        "run.workers=[4, 8]: 4 x 1 CPU = 4, but Ray has 2 CPU;"
        " set --run.workers 2 8 or --run.cpus_per_worker 0.5"
    )


def test_elastic_workers_need_room_for_a_count_that_divides_the_batch() -> None:
    assert not check_resources(config(24, workers=(4, 8)), {"CPU": 5.0})
    with pytest.raises(ConfigError) as caught:
        check_resources(config(24, workers=(5, 8)), {"CPU": 5.0})
    assert str(caught.value) == (
        "run.workers=[5, 8]: there is room for 5, but no count from 5 to 5 divides data.global_batch=24;"
        " lower the first of --run.workers, or join a larger cluster"
    )


def test_gpus_do_not_count_for_a_run_on_cpus() -> None:
    check_fits(Run(workers=4), {"CPU": 8.0}, ("CPU",))


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 0 GPU; set --run\.device cpu$"):
        check_resources(config(device="cuda"), {"CPU": 8.0})


@pytest.mark.parametrize(
    ("device", "gpus", "cuda"),
    [("auto", 1.0, True), ("auto", 0.0, False), ("cpu", 1.0, False), ("cuda", 1.0, True)],
)
def test_cuda_is_used_where_it_is_asked_for_or_there(device: Any, gpus: float, cuda: bool) -> None:
    assert check_resources(config(device=device), {"CPU": 1.0, "GPU": gpus}) is cuda


def test_a_local_run_is_measured_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "logical_cpus", lambda: 3)
    check_local(config(workers=2, device="cpu"))
    with pytest.raises(ConfigError, match="but Ray has 3 CPU"):
        check_local(config(workers=4, device="cpu"))


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def test_a_run_on_a_cluster_is_not_measured_by_this_machine(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not joins_cluster()
    monkeypatch.setenv(name, "set")
    assert joins_cluster()
    check_local(config(10_000, workers=10_000))


def test_cpus_are_those_that_this_process_may_use() -> None:
    assert 1 <= cluster.logical_cpus() <= (os.cpu_count() or 1)


def test_a_path_is_absolute_against_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/../a.json") == str(tmp_path / "a.json")


def test_an_absolute_path_stays() -> None:
    assert absolute("/a/b") == "/a/b"


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/runs") == str(tmp_path / "runs")


def test_an_address_stays() -> None:
    assert absolute("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize("url", ["s3://AKIA:se/cret@bucket/a.json", "https://user:se/cret@host/a.json"])
def test_a_password_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ShardSetError, match=r"holds a user or password") as error:
        absolute(url)
    assert "cret" not in str(error.value)


def test_only_home_relative_cache_folders_stay_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, expected in {"~/copies": "~/copies", "copies": str(tmp_path / "copies")}.items():
        config = Config(data=Data(cache_dir=given, train=("s3://bucket/a.json",)))
        made = with_absolute_paths(config).data
        assert made.cache_dir == expected and made.train == ("s3://bucket/a.json",)


def test_a_path_in_a_ray_job_lies_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute("runs") == str(tmp_path / "dfdet" / "runs")
    assert absolute("/a/b") == "/a/b"


@pytest.mark.parametrize("in_job", [True, False])
def test_dfdet_home_comes_first(in_job: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DFDET_HOME", str(tmp_path / "shared"))
    if in_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute("runs") == str(tmp_path / "shared" / "runs")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home folder of a job whose working folder has a file."""
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/space.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return tmp_path / "dfdet"


def test_an_input_file_may_come_with_the_job(job: Path) -> None:
    assert input_file("space.yaml") == str(job.parent / "copy/space.yaml")
    assert input_file("other.yaml") == str(job / "other.yaml")
    assert input_file("/a/b.yaml") == "/a/b.yaml"
    assert input_file("s3://bucket/a.yaml") == "s3://bucket/a.yaml"


@pytest.mark.parametrize("given", [["--config", "runs/a/config.json"], ["--config=runs/a/config.json"]])
def test_a_saved_config_is_found_from_a_job(job: Path, given: list[str]) -> None:
    found = ["--config", str(job / "runs/a/config.json")]
    assert with_config_file([*given, "--optim.lr", "1"]) == [*found, "--optim.lr", "1"]


@pytest.mark.parametrize("given", [["demo", "--optim.lr", "1"], ["--config"], ["--config", "--optim.lr"]])
def test_other_arguments_stay(job: Path, given: list[str]) -> None:
    assert with_config_file(given) == given


def test_files_of_prediction_and_serving_lie_in_the_home_of_a_job(job: Path) -> None:
    from ray_jobs import predict, serve_options

    given = predict.Predict(paths=("a",), checkpoint="runs/a", weights=Path("d.onnx"), out=Path("found"))
    found = predict.with_absolute_paths(given)
    assert (found.checkpoint, found.weights, found.out) == (
        str(job / "runs/a"),
        job / "d.onnx",
        job / "found",
    )
    assert (found.pretrained, found.paths) == (None, ("a",))
    served = serve_options.with_absolute_paths(
        serve_options.Serve(bundle=Path("b"), weights=Path("d.onnx"), token_file=Path("/t"))
    )
    assert (served.bundle, served.weights, served.token_file) == (job / "b", job / "d.onnx", Path("/t"))


def test_an_address_where_nothing_answers_is_told_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RayLostError, match=f"^RAY_ADDRESS={address}: no Ray answers there \\(Connection"):
            check_answers(address)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://host"])
def test_an_address_that_is_none_is_rays_to_judge(address):
    check_answers(address)
