"""Equal runs, equal bits; and where that cannot be had, one clear line."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.errors import ConfigError
from dfdet.model.detector import build_detector
from dfdet.training import determinism
from dfdet.training.engine import TrainEngine, dry_batch
from dfdet.training.schedule import batch_layout
from tests.group import run_group

SAMPLES, PIXELS, STEPS = 8, 32, 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undoes what a test enforced."""
    workspace = os.environ.get(determinism.CUBLAS_WORKSPACE)
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    os.environ.pop(determinism.CUBLAS_WORKSPACE, None)
    if workspace is not None:
        os.environ[determinism.CUBLAS_WORKSPACE] = workspace


def config_for(**values: Any) -> Config:
    return Config().replace(
        {
            "model.backbone": "tiny",
            "model.pretrained": None,
            "model.image_size": PIXELS,
            "loss.uniformity": 0.5,
            "loss.alignment": 0.1,
            "loss.slerp": True,
            "data.global_batch": SAMPLES,
            **values,
        }
    )


def batch_of(step: int, rank: int, world: int) -> Batch:
    rng = np.random.default_rng(step)
    rows = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (SAMPLES, PIXELS, PIXELS, 3), np.uint8))[rows],
        sizes=torch.full((SAMPLES // world,), PIXELS),
        labels=(torch.arange(SAMPLES) % 2)[rows],
        valid=torch.ones(SAMPLES, dtype=torch.bool)[rows],
        ids=np.arange(SAMPLES)[rows],
    )


def run_twice(rank: int, world: int) -> list[dict[str, Any]]:
    """The same short training twice."""
    determinism.enforce()
    found = []
    for _ in range(2):
        determinism.seed_everything(7)
        config = config_for()
        detector = build_detector(config)
        layout = batch_layout(SAMPLES, world, None)
        dry_batch(detector, config, layout, PIXELS, CPU)
        engine = TrainEngine(detector, config, layout, rank, CPU)
        losses = [float(engine.step(batch_of(s, rank, world), (7, 0, s), 3e-3).total) for s in range(STEPS)]
        weights = {name: tensor.numpy() for name, tensor in engine.weights().items()}
        found.append({"losses": losses, "weights": weights})
    return found


@pytest.fixture(scope="module")
def runs() -> dict[int, list[list[dict[str, Any]]]]:
    """By world size: of each rank, two runs."""
    return {world: run_group(world, run_twice, timeout_s=250) for world in (1, 2)}


@pytest.mark.parametrize("world", [1, 2])
def test_equal_runs_are_equal_to_the_bit(runs: dict[int, Any], world: int) -> None:
    first, *others = [run for rank in runs[world] for run in rank]
    assert len(set(first["losses"])) == STEPS
    for other in others:
        assert other["losses"] == first["losses"]
        for name, weight in first["weights"].items():
            np.testing.assert_array_equal(other["weights"][name], weight)


def test_losses_agree_across_topologies_to_the_rounding_of_bf16(runs: dict[int, Any]) -> None:
    alone, together = (runs[world][0][0]["losses"] for world in (1, 2))
    np.testing.assert_allclose(together, alone, rtol=determinism.BF16_LOSS_TOLERANCE)


def test_one_seed_starts_every_generator() -> None:
    drawn = []
    for seed in (3, 3, 4):
        determinism.seed_everything(seed)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_enforcing_sets_what_cuda_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(determinism.CUBLAS_WORKSPACE, raising=False)
    determinism.enforce()
    assert os.environ[determinism.CUBLAS_WORKSPACE] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)


def test_a_workspace_that_varies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(determinism.CUBLAS_WORKSPACE, ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 lets cuBLAS vary; unset it"):
        determinism.enforce()
    assert not torch.are_deterministic_algorithms_enabled()


class Unordered(nn.Module):
    """Passes features on through an operation that has no deterministic form."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        rows = torch.arange(features.numel(), device=features.device)
        return self.head(features.clone().put_(rows, features.flatten()), labels)


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    config = config_for()
    detector = build_detector(config)
    detector.head = Unordered(detector.head)
    layout = batch_layout(SAMPLES, 1, None)
    dry_batch(detector, config, layout, PIXELS, CPU)
    determinism.enforce()
    with pytest.raises(ConfigError, match=r"^run.deterministic=True: put_.* has no deterministic form"):
        dry_batch(detector, config, layout, PIXELS, CPU)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"), determinism.explained():
        raise RuntimeError("shapes do not match")
