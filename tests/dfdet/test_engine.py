"""The step: one global loss and gradient, whatever the ranks, micro-batches and ZeRO stage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dfdet.config import Config, Engine, Loss, Model, Optim
from dfdet.data.loader import Batch
from dfdet.detector import build_detector
from dfdet.engine import SLOTS, TrainEngine
from dfdet.schedule import batch_layout
from tests.group import run_group

SAMPLES, PIXELS, STEPS = 16, 32, 3
CPU = torch.device("cpu")


def config_for(**values: Any) -> Config:
    return Config(
        model=Model(backbone="tiny", pretrained=None, image_size=PIXELS),
        loss=Loss(ce=1.0, alignment=0.2, uniformity=0.3, slerp=True),
        optim=Optim(lr=3e-3, min_lr=0.0),
        engine=Engine(precision="fp32"),
    ).replace({"data.global_batch": SAMPLES, **values})


def batch_of(step: int, rank: int, world: int, poison: bool = False) -> Batch:
    """This rank's slice of a global batch of noise; sample 3 is masked."""
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.integers(0, 256, (SAMPLES, PIXELS, PIXELS, 3), np.uint8))
    labels = torch.arange(SAMPLES) % 2
    images[labels == 1, :, : PIXELS // 2] //= 2
    valid = torch.ones(SAMPLES, dtype=torch.bool)
    valid[3] = False
    rows = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    return Batch(
        images=images[rows],
        sizes=torch.full((SAMPLES // world,), PIXELS),
        labels=labels[rows],
        valid=valid[rows],
        ids=np.arange(SAMPLES)[rows],
    )


def train_steps(rank: int, world: int, values: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    config = config_for(**values)
    layout = batch_layout(SAMPLES, world, config.engine.micro_batch)
    engine = TrainEngine(build_detector(config), config, layout, rank, CPU)
    losses = [
        float(engine.step(batch_of(step, rank, world), (0, 0, step), 3e-3).total) for step in range(steps)
    ]
    return {
        "losses": losses,
        "weights": {name: tensor.numpy() for name, tensor in engine.weights().items()},
        "moments": {name: slots["exp_avg"].numpy() for name, slots in engine.moments().items()},
    }


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """One rank on the whole batch."""
    return run_group(1, train_steps, {})[0]


@pytest.mark.parametrize(
    ("world", "values"),
    [
        (2, {}),
        (1, {"engine.micro_batch": 8}),
        (2, {"engine.micro_batch": 4}),
        (2, {"engine.zero_stage": 1}),
        (2, {"engine.zero_stage": 2}),
        (2, {"engine.zero_stage": 3}),
        (2, {"engine.zero_stage": 2, "engine.micro_batch": 4}),
        (2, {"engine.zero_stage": 3, "engine.micro_batch": 4}),
    ],
    ids=str,
)
def test_any_topology_gives_the_losses_and_gradients_of_one_rank(
    whole: dict[str, Any], world: int, values: dict[str, Any]
) -> None:
    for found in run_group(world, train_steps, values):
        np.testing.assert_allclose(found["losses"], whole["losses"], rtol=1e-5, atol=1e-6)
        for name, moment in whole["moments"].items():
            np.testing.assert_allclose(found["moments"][name], moment, rtol=1e-3, atol=1e-6)


def test_accumulation_without_pairwise_terms_needs_one_pass_and_gives_the_same() -> None:
    plain = {"loss.alignment": 0.0, "loss.uniformity": 0.0, "loss.slerp": False}
    whole = run_group(1, train_steps, plain)[0]
    parts = run_group(2, train_steps, plain | {"engine.micro_batch": 2})[0]
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-5)
    for name, moment in whole["moments"].items():
        np.testing.assert_allclose(parts["moments"][name], moment, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scope", ["step", "rank"])
def test_narrower_scopes_train_too_and_differ(whole: dict[str, Any], scope: str) -> None:
    values = {"loss.pairwise_scope": scope, "engine.micro_batch": 4}
    found = run_group(2, train_steps, values)[0]
    assert all(map(math.isfinite, found["losses"]))
    assert not np.allclose(found["losses"], whole["losses"], rtol=1e-4)


def poisoned_steps(rank: int, world: int, stage: int) -> dict[str, Any]:
    config = config_for(**{"engine.zero_stage": stage, "optim.clip_norm": 1.0})
    layout = batch_layout(SAMPLES, world, None)
    engine = TrainEngine(build_detector(config), config, layout, rank, CPU)
    engine.step(batch_of(0, rank, world), (0, 0, 0), 3e-3)
    before, count = engine.weights(), engine.optimizer.step_count()
    moments = engine.moments()
    head = engine.detector.head
    forward = head.forward
    head.forward = lambda *args: forward(*args) * float("nan")  # type: ignore[method-assign]
    engine.step(batch_of(1, rank, world), (0, 0, 1), 3e-3)
    head.forward = forward  # type: ignore[method-assign]
    after = engine.weights()
    unchanged = all(torch.equal(before[name], after[name]) for name in before) and all(
        torch.equal(moments[name][slot], engine.moments()[name][slot]) for name in before for slot in SLOTS
    )
    engine.step(batch_of(2, rank, world), (0, 0, 2), 3e-3)
    moved = any(not torch.equal(after[name], tensor) for name, tensor in engine.weights().items())
    return {
        "unchanged": unchanged,
        "count": engine.optimizer.step_count() - count,
        "bad": int(engine.bad_steps),
        "moved": moved,
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_non_finite_step_changes_nothing_and_is_counted(stage: int) -> None:
    for found in run_group(2, poisoned_steps, stage):
        assert found == {"unchanged": True, "count": 1, "bad": 1, "moved": True}


def resumed_steps(rank: int, world: int, stages: tuple[int, int]) -> dict[str, Any]:
    """Two steps, then the state handed over to a new engine of another stage for the third."""
    from dfdet.resume import fill

    first, second = (config_for(**{"engine.zero_stage": stage}) for stage in stages)
    layout = batch_layout(SAMPLES, world, None)
    engine = TrainEngine(build_detector(first), first, layout, rank, CPU)
    for step in range(2):
        engine.step(batch_of(step, rank, world), (0, 0, step), 3e-3)
    weights, moments = engine.weights(), engine.moments()
    detector = build_detector(second)
    fill(detector.trainable(), weights, "test")
    engine = TrainEngine(detector, second, layout, rank, CPU, moments)
    engine.step(batch_of(2, rank, world), (0, 0, 2), 3e-3)
    return {name: tensor.numpy() for name, tensor in engine.weights().items()}


@pytest.mark.parametrize("stages", [(0, 0), (0, 3), (3, 1), (2, 0)], ids=str)
def test_weights_and_moments_move_between_zero_stages(whole: dict[str, Any], stages: tuple[int, int]) -> None:
    found = run_group(2, resumed_steps, stages)[0]
    for name, weight in whole["weights"].items():
        np.testing.assert_allclose(found[name], weight, rtol=1e-3, atol=2e-5)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    from dfdet.engine import param_groups

    detector = build_detector(config_for())
    grouped = [id(p) for group in param_groups(detector) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in detector.trainable().values())
