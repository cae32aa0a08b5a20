"""The loss of clips: what it is, and the same on any number of ranks and micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfdet.config import Config, Loss, Model, from_dict
from dfdet.data.loader import Batch
from dfdet.model.detector import build_detector
from dfdet.model.heads import build_head
from dfdet.model.temporal import build_temporal
from dfdet.training.clip_loss import ClipTerms
from dfdet.training.engine import TrainEngine, dry_batch, param_groups
from dfdet.training.gather import Rows
from dfdet.training.losses import DetectionLoss
from dfdet.training.schedule import batch_layout
from dfdet.training.step_loss import terms_of
from tests.group import run_group

CLIPS, FRAMES, PIXELS, STEPS, DIM = 4, 4, 32, 3, 64
SAMPLES = CLIPS * FRAMES
CPU = torch.device("cpu")


def rows_of(labels: list[int], counts: list[int]) -> Rows:
    """Clips with so many valid frames each; what stands in the others is nonsense."""
    generator = torch.Generator().manual_seed(0)
    valid = (torch.arange(FRAMES)[None] < torch.tensor(counts)[:, None]).flatten()
    features = torch.randn(len(valid), DIM, generator=generator)
    features = torch.where(valid[:, None], features, torch.nan)
    marked = torch.tensor(labels).repeat_interleave(FRAMES)
    return Rows(features, marked, valid, torch.linspace(0, 1, FRAMES).repeat(len(counts)))


def terms(config: Loss, rows: Rows, head: str = "linear") -> tuple[ClipTerms, Any, Any]:
    classifier = build_head(Model(head=head, margin=0.2 * (head != "linear")), DIM, seed=0)  # type: ignore[arg-type]
    temporal = build_temporal(DIM, FRAMES, seed=0)
    with torch.no_grad():
        temporal.out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    found = terms_of(DetectionLoss(config), rows, classifier, temporal, (0, 0, 0))
    assert isinstance(found, ClipTerms)
    return found, classifier, temporal


@pytest.mark.parametrize("head", ["linear", "cosine", "angular"])
def test_terms_are_those_of_a_loop_over_clips(head: str) -> None:
    labels, counts = [0, 1, 1, 0], [4, 2, 1, 0]
    rows = rows_of(labels, counts)
    found, classifier, temporal = terms(Loss(clip=2.0, consistency=0.5), rows, head)
    losses, distances = [], []
    for clip, (label, count) in enumerate(zip(labels, counts, strict=True)):
        if not count:
            continue
        own = slice(clip * FRAMES, clip * FRAMES + count)
        frames, times = rows.features[own], rows.times[own]  # type: ignore[index]
        whole = torch.ones(1, count, dtype=torch.bool)
        feature = temporal(frames[None], times[None], whole)
        wanted = torch.tensor([label])
        losses += [F.cross_entropy(classifier(feature, wanted), wanted)] * count
        fake = classifier(feature, None).softmax(1)[:, 1]
        distances += list((classifier(frames, None).softmax(1)[:, 1] - fake).square())
    torch.testing.assert_close(found.clip, torch.stack(losses).mean().detach())
    torch.testing.assert_close(found.consistency, torch.stack(distances).mean().detach())
    torch.testing.assert_close(found.total, found.ce + 2 * found.clip + 0.5 * found.consistency)


def gradients(config: Loss, rows: Rows) -> tuple[Tensor, Tensor]:
    """Of the features and of the attention's output."""
    features = rows.features.clone().requires_grad_()
    found, _, temporal = terms(config, rows._replace(features=features))
    found.total.backward()
    moved = temporal.out.weight.grad
    return features.grad, torch.zeros(()) if moved is None else moved  # type: ignore[return-value]


def test_padding_gets_no_gradient_and_gives_none() -> None:
    rows = rows_of([0, 1], [3, 1])
    grads, moved = gradients(Loss(clip=1.0, consistency=1.0), rows)
    assert grads[rows.valid].abs().min() > 0 and moved.abs().sum() > 0
    assert grads[~rows.valid].abs().sum() == 0


def test_frames_are_drawn_to_their_clip_and_the_clip_to_nothing() -> None:
    grads, moved = gradients(Loss(ce=0, clip=0, consistency=1.0), rows_of([0, 1], [4, 4]))
    assert grads.abs().max() > 1e-5
    assert moved.abs().sum() == 0


def test_clips_alone_can_be_learned_from() -> None:
    rows = rows_of([0, 1], [4, 2])
    found = terms(Loss(ce=0, clip=1.0), rows)[0]
    torch.testing.assert_close(found.total.detach(), found.clip)


def test_a_batch_of_padding_is_0_and_finite() -> None:
    found = terms(Loss(consistency=1.0), rows_of([0, 1], [0, 0]))[0]
    assert [value.item() for value in vars(found).values()] == [0.0] * 6


# ---------------------------------------------------------------- through the engine


def config_for(**values: Any) -> Config:
    return from_dict(
        {
            "model": {"backbone": "tiny", "pretrained": None, "image_size": PIXELS, "temporal": True},
            "data": {"sampling": "clip", "clip_frames": FRAMES, "global_batch": SAMPLES},
            "loss": {"alignment": 0.2, "uniformity": 0.3, "slerp": True, "clip": 0.7, "consistency": 0.4},
            "optim": {"lr": 3e-3, "min_lr": 0.0},
            "engine": {"precision": "fp32"},
        }
    ).replace(values)


def batch_of(step: int, rank: int, world: int) -> Batch:
    """This rank's slice of a global batch of noise; clips have 4, 2, 1 and 3 frames."""
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.integers(0, 256, (SAMPLES, PIXELS, PIXELS, 3), np.uint8))
    labels = (torch.arange(CLIPS) % 2).repeat_interleave(FRAMES)
    valid = (torch.arange(FRAMES)[None] < torch.tensor([4, 2, 1, 3])[:, None]).flatten()
    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    return Batch(
        images=images[own],
        sizes=torch.full((SAMPLES // world,), PIXELS),
        labels=labels[own],
        valid=valid[own],
        ids=np.arange(SAMPLES)[own],
        times=torch.linspace(0, 1, FRAMES).repeat(CLIPS)[own],
    )


def train_steps(rank: int, world: int, values: dict[str, Any]) -> dict[str, Any]:
    config = config_for(**values)
    layout = batch_layout(SAMPLES, world, config.engine.micro_batch, FRAMES)
    engine = TrainEngine(build_detector(config), config, layout, rank, CPU)
    found = [vars(engine.step(batch_of(step, rank, world), (0, 0, step), 3e-3)) for step in range(STEPS)]
    return {
        "losses": [[float(value) for value in terms.values()] for terms in found],
        "names": list(found[0]),
        "moments": {name: slots["exp_avg"].numpy() for name, slots in engine.moments().items()},
    }


PLAIN = {"loss.alignment": 0.0, "loss.uniformity": 0.0, "loss.slerp": False}
TOPOLOGIES: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (1, {"engine.micro_batch": 8}),
    (2, {"engine.micro_batch": 4}),
    (2, PLAIN),
    (1, PLAIN | {"engine.micro_batch": 4}),
    (2, PLAIN | {"engine.micro_batch": 4}),
    (2, {"engine.zero_stage": 2}),
    (2, {"engine.zero_stage": 3}),
]
PROBE = {"tuning.mode": "probe", **PLAIN}


def all_cases(rank: int, world: int) -> dict[str, Any]:
    """All that is tested on so many ranks, in one group: starting one takes longer than a case."""
    cases = [{}, PLAIN, PROBE, *(values for ranks, values in TOPOLOGIES if ranks == world)]
    return {str(values): train_steps(rank, world, values) for values in cases}


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[str, Any]]]:
    """Results by world size and rank."""
    return {world: run_group(world, all_cases, timeout_s=250) for world in (1, 2)}


@pytest.mark.parametrize(("world", "values"), TOPOLOGIES, ids=str)
def test_any_topology_gives_the_losses_and_gradients_of_one_rank(
    found: dict[int, Any], world: int, values: dict[str, Any]
) -> None:
    whole = found[1][0][str(PLAIN if "loss.slerp" in values else {})]
    for rank in found[world]:
        result = rank[str(values)]
        np.testing.assert_allclose(learned(result, values), learned(whole, values), rtol=2e-5, atol=1e-6)
        for name, moment in whole["moments"].items():
            np.testing.assert_allclose(result["moments"][name], moment, rtol=1e-3, atol=1e-6)


def learned(result: dict[str, Any], values: dict[str, Any]) -> Any:
    """Losses ``[steps, terms]`` but for those of weight 0: with micro-steps they are of each one's pairs."""
    losses = np.array(result["losses"])
    return np.delete(losses, [2, 3], axis=1) if "loss.slerp" in values else losses


def test_the_terms_are_logged_by_name_and_the_head_gets_gradients(found: dict[int, Any]) -> None:
    result = found[1][0]["{}"]
    assert result["names"] == ["total", "ce", "alignment", "uniformity", "clip", "consistency"]
    assert min(np.ptp(column) for column in np.transpose(result["losses"])) > 0
    moved = {name: np.abs(moment).max() for name, moment in result["moments"].items()}
    assert moved["temporal.out.weight"] > 1e-4
    assert moved["temporal.query"] > 0


def test_a_probe_trains_the_heads_alone(found: dict[int, Any]) -> None:
    names = set(found[1][0][str(PROBE)]["moments"])
    assert {name.split(".")[0] for name in names} == {"head", "temporal"}


def test_the_temporal_head_trains_at_the_heads_rate() -> None:
    detector = build_detector(config_for())
    tower, heads = param_groups(detector, 5.0)
    own = {id(p) for p in [*detector.head.parameters(), *detector.temporal.parameters()]}  # type: ignore[union-attr]
    assert {id(p) for p in heads["params"]} == own and heads["lr_factor"] == 5.0
    grouped = [id(p) for group in (tower, heads) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in detector.trainable().values())


def test_the_dry_batch_goes_through_the_clips() -> None:
    config = config_for()
    detector = build_detector(config)
    seen: list[torch.Size] = []
    assert detector.temporal is not None
    detector.temporal.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    dry_batch(detector, config, batch_layout(SAMPLES, 1, 8, FRAMES), PIXELS, CPU)
    assert seen == [(2, detector.tower.output_dim)]
