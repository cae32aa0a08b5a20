"""Elastic workers on a real cluster of two nodes: one joins, one goes, and no batch is lost or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfdet.runs.runfolder import read_metrics
from tests.ray_jobs.test_train_ray import ROOT, command, environment, wait_for

ELASTIC = ("--run.workers", "1", "2", "--run.cpus_per_worker", "1")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    temporary = str(tmp_path_factory.mktemp("r"))
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temporary}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def records(storage: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(storage / "run/metrics.jsonl") if "steps" in record]


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_joins_is_used_from_a_fresh_checkpoint_on(
    cluster: Any, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "run/log.txt"
    driver = subprocess.Popen(
        command(
            signal_sets, tmp_path, *ELASTIC, "--optim.epochs", "2000", "--engine.checkpoint_every", "100000"
        ),
        cwd=ROOT,
        env=environment() | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: records(tmp_path), driver)
    assert "= 1 workers x" in log.read_text()
    cluster.add_node(num_cpus=1)
    wait_for(lambda: "= 2 workers x" in log.read_text(), driver, 200)
    asked = log.read_text()
    assert "room for 2 workers instead of 1: saving a checkpoint, then going on with them" in asked
    resumed = int(asked.rpartition("resumed at step ")[2].split()[0])
    wait_for(lambda: records(tmp_path)[-1]["step"] > resumed + 3, driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 143, output
    stopped = json.loads((tmp_path / "run/result.json").read_text())
    assert stopped["world_size"] == 2
    assert [record["step"] for record in records(tmp_path)] == list(range(1, stopped["step"] + 1))
