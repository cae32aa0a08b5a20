"""The step: one global loss and gradient, whatever the ranks, micro-batches and ZeRO stage."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dfdet.config import Config, Engine, Loss, Model, Optim
from dfdet.data.loader import Batch
from dfdet.model.detector import build_detector
from dfdet.training.clock import PARTS
from dfdet.training.engine import SLOTS, TrainEngine
from dfdet.training.schedule import batch_layout
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


def resumed_steps(rank: int, world: int, stages: tuple[int, int]) -> dict[str, Any]:
    """Two steps, then the state handed over to a new engine of another stage for the third."""
    first, second = (config_for(**{"engine.zero_stage": stage}) for stage in stages)
    layout = batch_layout(SAMPLES, world, None)
    engine = TrainEngine(build_detector(first), first, layout, rank, CPU)
    for step in range(2):
        engine.step(batch_of(step, rank, world), (0, 0, step), 3e-3)
    weights, moments = engine.weights(), engine.moments()
    detector = build_detector(second)
    detector.load_trained(weights)
    engine = TrainEngine(detector, second, layout, rank, CPU, moments)
    engine.step(batch_of(2, rank, world), (0, 0, 2), 3e-3)
    return {name: tensor.numpy() for name, tensor in engine.weights().items()}


class Watch(TorchDispatchMode):
    """Counts the operations that are called, collectives too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket._qualified_op_name.split("::", 1)[-1]] += 1
        return func(*args, **(kwargs or {}))


def watched_step(rank: int, world: int, values: dict[str, Any]) -> dict[str, Any]:
    """What the second step calls, and the time of its parts."""
    config = config_for(**values)
    layout = batch_layout(SAMPLES, world, config.engine.micro_batch)
    engine = TrainEngine(build_detector(config), config, layout, rank, CPU)
    engine.step(batch_of(0, rank, world), (0, 0, 0), 3e-3)
    engine.clock.read()
    with Watch() as watch:
        engine.step(batch_of(1, rank, world), (0, 0, 1), 3e-3)
    return {"seen": dict(watch.seen), "parts": engine.clock.read()}


def clipped_norms(rank: int, world: int) -> list[float]:
    """Norms of the first moments after a step, of a clipped and a free engine."""
    norms = []
    for clip in (1e-3, 0.0):
        config = config_for(**{"optim.clip_norm": clip})
        engine = TrainEngine(build_detector(config), config, batch_layout(SAMPLES, world, None), rank, CPU)
        engine.step(batch_of(0, rank, world), (0, 0, 0), 3e-3)
        moments = [slots["exp_avg"].flatten() for slots in engine.moments().values()]
        norms.append(float(torch.cat(moments).norm() / (1 - config.optim.betas[0])))
    return norms


PLAIN = {"loss.alignment": 0.0, "loss.uniformity": 0.0, "loss.slerp": False}
TOPOLOGIES: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (1, {"engine.micro_batch": 8}),
    (2, {"engine.micro_batch": 4}),
    (2, {"engine.zero_stage": 1}),
    (2, {"engine.zero_stage": 2}),
    (2, {"engine.zero_stage": 3}),
    (2, {"engine.zero_stage": 2, "engine.micro_batch": 4}),
    (2, {"engine.zero_stage": 3, "engine.micro_batch": 4}),
]
NARROWER = [{"loss.pairwise_scope": scope, "engine.micro_batch": 4} for scope in ("step", "rank")]
STAGES = [0, 1, 2, 3]
MESSAGES: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({}, {"_allgather_base_": 1, "allreduce_": 1}),
    ({"optim.clip_norm": 1.0}, {"_allgather_base_": 1, "allreduce_": 1}),
    ({"engine.micro_batch": 2}, {"_allgather_base_": 1, "allreduce_": 1}),
    (NARROWER[0], {"_allgather_base_": 2, "allreduce_": 2}),
    (NARROWER[1], {"allreduce_": 1}),
]
HOST_READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
COLLECTIVES = {
    "_allgather_base_",
    "allgather_",
    "allreduce_",
    "broadcast_",
    "_reduce_scatter_base_",
    "barrier",
}
HANDOVERS = [(0, 0), (0, 3), (3, 1), (2, 0)]


def all_cases(rank: int, world: int) -> dict[str, Any]:
    """All that is tested on so many ranks, in one group: starting one takes longer than a case."""
    trained = [{}, PLAIN, PLAIN | {"engine.micro_batch": 2}, *NARROWER]
    trained += [values for ranks, values in TOPOLOGIES if ranks == world]
    found: dict[str, Any] = {str(values): train_steps(rank, world, values) for values in trained}
    found |= {f"watched {values}": watched_step(rank, world, values) for values, _ in MESSAGES}
    found["clipped"] = clipped_norms(rank, world)
    if world > 1:
        found |= {f"poison {stage}": poisoned_steps(rank, world, stage) for stage in STAGES}
        found |= {f"handover {stages}": resumed_steps(rank, world, stages) for stages in HANDOVERS}
    return found


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[str, Any]]]:
    """Results by world size and rank."""
    return {world: run_group(world, all_cases, timeout_s=250) for world in (1, 2)}


@pytest.mark.parametrize(("world", "values"), TOPOLOGIES, ids=str)
def test_any_topology_gives_the_losses_and_gradients_of_one_rank(
    found: dict[int, Any], world: int, values: dict[str, Any]
) -> None:
    whole = found[1][0]["{}"]
    for rank in found[world]:
        assert_same_training(rank[str(values)], whole)


def assert_same_training(result: dict[str, Any], whole: dict[str, Any]) -> None:
    np.testing.assert_allclose(result["losses"], whole["losses"], rtol=1e-5, atol=1e-6)
    for name, moment in whole["moments"].items():
        np.testing.assert_allclose(result["moments"][name], moment, rtol=1e-3, atol=1e-6)


def test_accumulation_without_pairwise_terms_gives_the_same(found: dict[int, Any]) -> None:
    assert_same_training(found[2][0][str(PLAIN | {"engine.micro_batch": 2})], found[1][0][str(PLAIN)])


@pytest.mark.parametrize("values", NARROWER, ids=str)
def test_narrower_scopes_train_too_and_differ(found: dict[int, Any], values: dict[str, Any]) -> None:
    losses = found[2][0][str(values)]["losses"]
    assert all(map(math.isfinite, losses))
    assert not np.allclose(losses, found[1][0]["{}"]["losses"], rtol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_non_finite_step_changes_nothing_and_is_counted(found: dict[int, Any], stage: int) -> None:
    for rank in found[2]:
        assert rank[f"poison {stage}"] == {"unchanged": True, "count": 1, "bad": 1, "moved": True}


@pytest.mark.parametrize("stages", HANDOVERS, ids=str)
def test_weights_and_moments_move_between_zero_stages(found: dict[int, Any], stages: tuple[int, int]) -> None:
    handed = found[2][0][f"handover {stages}"]
    for name, weight in found[1][0]["{}"]["weights"].items():
        np.testing.assert_allclose(handed[name], weight, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("values", "messages"), MESSAGES, ids=str)
def test_a_step_sends_few_messages(
    found: dict[int, Any], values: dict[str, Any], messages: dict[str, int]
) -> None:
    for rank in found[2]:
        seen = rank[f"watched {values}"]["seen"]
        assert {name: count for name, count in seen.items() if name in COLLECTIVES} == messages


@pytest.mark.parametrize(("values", "messages"), MESSAGES, ids=str)
def test_a_lone_rank_sends_nothing(
    found: dict[int, Any], values: dict[str, Any], messages: dict[str, int]
) -> None:
    assert not COLLECTIVES & set(found[1][0][f"watched {values}"]["seen"])


@pytest.mark.parametrize(("values", "messages"), MESSAGES, ids=str)
def test_nothing_in_a_step_is_read_by_the_host(
    found: dict[int, Any], values: dict[str, Any], messages: dict[str, int]
) -> None:
    for world in (1, 2):
        seen = found[world][0][f"watched {values}"]["seen"]
        assert seen["native_layer_norm"] > 0
        assert not HOST_READS & set(seen)


def test_the_clock_tells_the_parts_of_a_step(found: dict[int, Any]) -> None:
    alone, together = (found[world][0]["watched {}"]["parts"] for world in (1, 2))
    assert tuple(alone) == PARTS
    assert [part for part in PARTS if alone[part] == 0] == ["communication"]
    assert all(seconds > 0 for seconds in together.values())


def test_gradients_are_clipped_to_the_norm(found: dict[int, Any]) -> None:
    for world in (1, 2):
        clipped, free = found[world][0]["clipped"]
        assert free > 2e-3
        assert clipped == pytest.approx(1e-3, rel=1e-5)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    from dfdet.training.engine import param_groups

    detector = build_detector(config_for())
    grouped = [id(p) for group in param_groups(detector) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in detector.trainable().values())
