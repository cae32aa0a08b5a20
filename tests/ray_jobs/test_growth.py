"""Clusters that scale by demand: what they may grow to counts as room, and is waited for."""

from __future__ import annotations

import pytest

from dfdet.errors import ConfigError
from dfdet.recipes import demo
from ray_jobs.cluster import check_resources
from ray_jobs.growth import GROWS_TO, cpus_to_ask, grown, growth


def test_without_the_variable_nothing_grows(monkeypatch):
    monkeypatch.delenv(GROWS_TO, raising=False)
    assert growth() == {}
    assert grown({"CPU": 2.0}) == {"CPU": 2.0}


def test_a_kind_counts_as_what_there_is_or_may_come(monkeypatch):
    monkeypatch.setenv(GROWS_TO, " CPU=512, GPU=32")
    assert grown({"CPU": 600.0, "memory": 7.0}) == {"CPU": 600.0, "GPU": 32.0, "memory": 7.0}


def test_a_run_fits_into_a_cluster_of_no_nodes_yet(monkeypatch):
    run = demo().replace({"run.workers": 8, "data.global_batch": 64})
    with pytest.raises(ConfigError, match="Ray has 0 CPU"):
        check_resources(run, grown({}))
    monkeypatch.setenv(GROWS_TO, "CPU=512,GPU=32")
    assert check_resources(run, grown({"CPU": 0.0}))  # on GPUs
    with pytest.raises(ConfigError, match="64 x 1 GPU = 64, but Ray has 32 GPU"):
        check_resources(run.replace({"run.workers": 64, "data.global_batch": 128}), grown({}))


@pytest.mark.parametrize("given", ["CPU", "CPU=many", "=4", "CPU=-1", "CPU=4=5", "CPU=nan"])
def test_what_cannot_be_read_is_refused(given, monkeypatch):
    monkeypatch.setenv(GROWS_TO, given)
    with pytest.raises(ConfigError, match=f"{GROWS_TO}={given}: not amounts"):
        growth()


def test_sharding_asks_for_nodes_but_not_for_all(monkeypatch):
    monkeypatch.delenv(GROWS_TO, raising=False)
    assert (cpus_to_ask(0.0), cpus_to_ask(3.0)) == (1, 3)
    monkeypatch.setenv(GROWS_TO, "CPU=512")
    assert (cpus_to_ask(0.0), cpus_to_ask(300.0)) == (128, 300)
    monkeypatch.setenv(GROWS_TO, "CPU=32")
    assert cpus_to_ask(8.0) == 32
