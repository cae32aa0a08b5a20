"""Trackers of a worker, read back with their own clients: offline W&B, MLflow on SQLite, Prometheus."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.recipes import demo
from dfdet.runs.runfolder import RunFolder
from dfdet.sweep.drivers import Drivers
from ray_jobs.prometheus import COUNTERS, GAUGES, SCORE, STARTED, score_tags
from ray_jobs.tracking import Trackers, check, dotted, run_id

KEY = "0123456789abcdef" * 2 + "01234567"


def tracked(*names: str, **changes: Any) -> Config:
    return demo().replace({"run.track": names, "run.track_project": "faces", **changes})


def folder(path: Path, name: str = "a-run") -> RunFolder:
    (path / "study" / name).mkdir(parents=True, exist_ok=True)
    return RunFolder(path / "study" / name)


def follow(config: Config, run: RunFolder, records: list[dict[str, Any]], rank: int = 0) -> None:
    trackers = Trackers(config, run, rank)
    for record in records:
        trackers.record(record)
    trackers.close()


@pytest.fixture
def without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


# ---- what the driver checks


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))
    with pytest.raises(ConfigError, match=rf"run.track={name}: .* pip install '\.\[track\]'"):
        check(tracked(name))


def test_wandb_without_a_key_is_refused(without_credentials: None) -> None:
    with pytest.raises(ConfigError, match=r"run.track=wandb: there is no API key; run `wandb login`"):
        check(tracked("wandb"))


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "offline"), ("WANDB_API_KEY", KEY)])
def test_wandb_offline_or_with_a_key_is_taken(
    name: str, value: str, without_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check(tracked("wandb"))


def test_a_run_without_trackers_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    check(tracked())


# ---- names


def test_a_run_keeps_its_id_and_its_namesake_elsewhere_has_another(tmp_path: Path) -> None:
    here, again = folder(tmp_path / "a"), folder(tmp_path / "a")
    there = folder(tmp_path / "b")
    assert run_id(here) == run_id(again)
    assert run_id(here) != run_id(there)
    assert run_id(here).startswith("a-run-")


def test_config_fields_go_by_their_dotted_paths() -> None:
    fields = dotted(demo().model_dump(mode="json"))
    assert fields["optim.lr"] == 2e-2
    assert fields["data.augment.strength"] == 0.0
    assert fields["data.train"] == "data/demo/train.json"
    assert not any(isinstance(value, dict | list) for value in fields.values())


def test_only_the_first_rank_tracks(tmp_path: Path) -> None:
    run = folder(tmp_path)
    follow(tracked(), run, [{"step": 1, "epoch": 0.1}], rank=1)
    assert list(run.path.iterdir()) == []


# ---- W&B


BLOCK, HEADER = 32768, 7


def wandb_records(path: Path) -> Iterator[bytes]:
    """Records of an offline run's file: a LevelDB log in blocks of 32 KiB after a header of 7 bytes."""
    data, at, record = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too short for another header: padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + HEADER + length > len(data):
            return  # half written
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in {1, 4}:  # whole, last part
            yield record
            record = b""


def wandb_rows(run: RunFolder, finished: int = 1) -> tuple[list[Any], list[dict[str, str]]]:
    """Run records and rows of history of all offline runs, once so many are written to their end.

    W&B's service may still write when ``finish`` has returned.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records: list[Any] = []
    deadline = time.monotonic() + 60
    while [record.WhichOneof("record_type") for record in records].count("exit") < finished:
        assert time.monotonic() < deadline, "W&B has not written its files"
        time.sleep(0.1)
        paths = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
        records = [Record.FromString(data) for path in paths for data in wandb_records(path)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    history = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return runs, [{i.key or "/".join(i.nested_key): i.value_json for i in items} for items in history]


@pytest.mark.ray
def test_wandb_offline_has_config_group_and_curves(
    tmp_path: Path, without_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = folder(tmp_path)
    records = [
        {"step": 10, "epoch": 0.5, "train/loss/total": 0.75, "val/a/video/ap": None},
        {"step": 20, "epoch": 1.0, "train/loss/total": 0.5},
    ]
    follow(tracked("wandb"), run, records)
    runs, rows = wandb_rows(run)
    assert (runs[0].run_id, runs[0].display_name, runs[0].project, runs[0].run_group) == (
        run_id(run),
        "a-run",
        "faces",
        "study",
    )
    fields = {item.key: item.value_json for item in runs[0].config.update}
    assert fields["optim.lr"] == "0.02"
    assert [(row["_step"], row["train/loss/total"]) for row in rows] == [("10", "0.75"), ("20", "0.5")]
    assert not any("val/a/video/ap" in row for row in rows)
    written = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert KEY.encode() not in written


@pytest.mark.ray
def test_a_resume_continues_the_wandb_run(
    tmp_path: Path, without_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = folder(tmp_path)
    follow(tracked("wandb"), run, [{"step": 10, "epoch": 0.5}])
    time.sleep(1.1)  # W&B names offline folders by the second
    follow(tracked("wandb"), run, [{"step": 20, "epoch": 1.0}])
    runs, rows = wandb_rows(run, finished=2)
    assert {each.run_id for each in runs} == {run_id(run)}
    assert [row["_step"] for row in rows] == ["10", "20"]


# ---- MLflow


@pytest.fixture
def client(tmp_path: Path, without_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'tracking.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return MlflowClient(tracking_uri=uri)


def mlflow_runs(client: Any) -> list[Any]:
    place = client.get_experiment_by_name("faces")
    return list(client.search_runs([place.experiment_id]))


def history(client: Any, name: str) -> list[tuple[int, float]]:
    points = client.get_metric_history(mlflow_runs(client)[0].info.run_id, name)
    return sorted((point.step, point.value) for point in points)


@pytest.mark.ray
def test_mlflow_has_parameters_and_curves(tmp_path: Path, client: Any) -> None:
    records = [{"step": 10, "epoch": 0.5, "test/a/video/auroc@jpeg-40": 0.75, "val/a/video/ap": None}]
    follow(tracked("mlflow"), folder(tmp_path), records)
    (found,) = mlflow_runs(client)
    assert found.info.run_name == "a-run"
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.02"
    assert found.data.tags["group"] == "study"
    assert found.data.metrics == {"epoch": 0.5, "test/a/video/auroc_at_jpeg-40": 0.75}


@pytest.mark.ray
def test_a_resume_continues_the_mlflow_run_without_doubles(tmp_path: Path, client: Any) -> None:
    run = folder(tmp_path)
    follow(tracked("mlflow"), run, [{"step": step, "loss": 1.0} for step in (10, 20, 30)])
    follow(
        tracked("mlflow", **{"run.workers": 1}),  # may change on a resume
        run,
        [{"step": 20, "loss": 1.0}, {"step": 30, "loss": 1.0, "test/ap": 0.5}, {"step": 40, "loss": 2.0}],
    )
    assert len(mlflow_runs(client)) == 1
    assert history(client, "loss") == [(10, 1.0), (20, 1.0), (30, 1.0), (40, 2.0)]
    assert history(client, "test/ap") == [(30, 0.5)]


@pytest.mark.ray
def test_mlflow_without_a_server_lies_beside_the_runs(
    tmp_path: Path, without_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    follow(tracked("mlflow"), folder(tmp_path), [{"step": 10, "loss": 1.0}])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'study' / 'mlflow.db'}")
    assert [run.info.run_name for run in mlflow_runs(client)] == ["a-run"]


@pytest.mark.ray
def test_a_server_that_is_away_is_warned_of_once_and_ends_nothing(
    tmp_path: Path,
    without_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = folder(tmp_path)
    with caplog.at_level(logging.WARNING, "dfdet.runs.tracking"):
        follow(tracked("mlflow"), run, [{"step": step, "loss": 1.0} for step in (10, 20)])
    (message,) = [each for each in caplog.messages if each.startswith("MLflow: ")]
    assert "the run goes on" in message
    assert "secret" not in message
    assert any((run.path / "tensorboard").iterdir())


# ---- Prometheus


@pytest.fixture(scope="module")
def metrics_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def scraped(url: str, run: str, wanted: set[str]) -> dict[str, list[dict[str, str]]]:
    """Samples of a run at the endpoint by name, each its tags and ``value``, once all wanted are there."""
    deadline = time.monotonic() + 120
    found: dict[str, list[dict[str, str]]] = {}
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(url).read().decode()
        found = {}
        for metric in text_string_to_metric_families(text):
            for sample in metric.samples:
                if sample.labels.get("run") == run:
                    found.setdefault(sample.name, []).append(sample.labels | {"value": str(sample.value)})
        if wanted <= found.keys():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not at the endpoint: {sorted(wanted - found.keys())}")


def value(samples: list[dict[str, str]]) -> float:
    (sample,) = samples
    return float(sample["value"])


ALL = {f"ray_{name}" for name, _ in [*GAUGES.values(), *COUNTERS.values(), SCORE, STARTED]}


@pytest.mark.ray
@pytest.mark.slow
def test_rays_endpoint_has_every_metric_by_run_trial_and_rank(metrics_url: str, tmp_path: Path) -> None:
    trackers = Trackers(tracked(), folder(tmp_path, "scraped"), 0)
    everything = dict.fromkeys([*GAUGES, *COUNTERS], 1.0)
    trackers.record(everything | {"train/damaged": 2, "train/loss/total": 0.75})
    trackers.record({"step": 20, "perf/images_per_s": 200.0, "train/loss/total": None, "train/damaged": 5})
    trackers.record({"step": 20, "epoch": 1, "val/a/video/auroc": 0.9, "val/a/video/auroc_low": 0.8})
    found = scraped(metrics_url, "scraped", ALL)
    trackers.close()
    assert found.keys() == ALL
    assert value(found["ray_dfdet_step"]) == 20.0
    assert value(found["ray_dfdet_images_per_second"]) == 200.0
    assert value(found["ray_dfdet_loss"]) == 0.75  # a record without it leaves it
    assert value(found["ray_dfdet_damaged_samples_total"]) == 5.0
    (score,) = found["ray_dfdet_score"]
    told = [score[tag] for tag in ("split", "set", "level", "metric", "value")]
    assert told == ["val", "a", "video", "auroc", "0.9"]
    assert {(s["trial"], s["rank"]) for samples in found.values() for s in samples} == {("", "0")}


@pytest.mark.ray
@pytest.mark.slow
def test_runs_of_a_sweep_are_trials_of_its_name(metrics_url: str, tmp_path: Path) -> None:
    first, second = folder(tmp_path, "0001"), folder(tmp_path, "0002")
    sweep = Drivers(tmp_path / "study", patience_s=0)
    sweep.home()
    sweep.leave()
    for run, loss in ((first, 0.5), (second, 0.25)):
        Trackers(tracked(), run, 0).record({"step": 10, "train/loss/total": loss})
    deadline = time.monotonic() + 120
    losses: dict[str, float] = {}
    while len(losses) < 2 and time.monotonic() < deadline:
        samples = scraped(metrics_url, "study", {"ray_dfdet_loss"})["ray_dfdet_loss"]
        losses = {sample["trial"]: float(sample["value"]) for sample in samples}
    assert losses == {"0001": 0.5, "0002": 0.25}


@pytest.mark.parametrize(
    "key",
    [
        "val/a/video/auroc_low",
        "val/a/video/auroc/DF",  # of a method
        "train/loss/total",
        "perf/step_s",
    ],
)
def test_what_is_no_metric_of_a_whole_set_is_no_score(key: str) -> None:
    assert score_tags(key) is None


def test_mlflow_of_runs_behind_a_url_needs_a_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = demo().replace({"run.track": ("mlflow",), "run.storage": "s3://bucket/runs"})
    with pytest.raises(ConfigError, match=r"run.storage=s3://bucket/runs can hold no database; set MLFLOW"):
        check(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check(config)
