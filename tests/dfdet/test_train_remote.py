"""The whole job from URLs: the same bits as from local files, and damage counted."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dfdet.data import remote
from dfdet.data.index import open_sets
from tests.dfdet.data.storage import serving
from tests.dfdet.test_train import config_for, run, weights


@pytest.fixture
def served(signal_sets, tmp_path, monkeypatch):
    """A server of copies of the sets, and their URLs."""
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    shutil.copytree(next(iter(signal_sets.values())).parent, folder)
    with serving(folder) as server:
        yield server, {split: f"{server.url}/{path.name}" for split, path in signal_sets.items()}


def test_a_run_from_urls_ends_with_the_bits_of_a_local_one(signal_sets, served, tmp_path):
    server, urls = served
    tars = [shard.name for path in signal_sets.values() for shard in open_sets([path]).shards]
    server.fail = dict.fromkeys(tars, 1)
    remotely, locally = tmp_path / "remotely", tmp_path / "locally"
    found = run(config_for(urls, remotely, **{"data.cache_dir": str(tmp_path / "cache")}))
    expected = run(config_for(signal_sets, locally))
    assert found["status"] == "finished" and found["metrics"] == expected["metrics"]
    for name, tensor in weights(locally).items():
        assert torch.equal(tensor, weights(remotely)[name])
    assert {server.counts[name] for name in tars} == {2}


def test_samples_of_an_object_that_is_gone_are_counted_in_the_result(served, tmp_path):
    server, urls = served
    server.status = {shard.name: 404 for shard in open_sets([str(tmp_path / "served/train.json")]).shards}
    changes = {"data.cache_dir": str(tmp_path / "cache"), "data.on_damage": "skip", "data.max_damaged": 10**6}
    result = run(config_for(urls, tmp_path / "runs", **changes, **{"optim.epochs": 1}))
    read = 2 * 48  # an epoch of rotate: every real and one fake
    assert result["counts"]["damaged"] == {"gone": read}
    recorded = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    assert recorded["counts"]["damaged"] == {"gone": read}
