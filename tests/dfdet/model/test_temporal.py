"""The temporal head: the mean at first, padding counts nowhere, and it learns what the mean cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfdet.config import Model
from dfdet.model.heads import LinearHead, build_head
from dfdet.model.temporal import TemporalHead, build_temporal, positions

CLIPS, FRAMES, DIM = 5, 8, 64


def clips(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, times and mask; the clips have 8, 5, 1, 3 and no frames."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(CLIPS, FRAMES, DIM, generator=generator)
    times = torch.linspace(0, 1, FRAMES).repeat(CLIPS, 1)
    valid = torch.arange(FRAMES)[None] < torch.tensor([8, 5, 1, 3, 0])[:, None]
    return features, times, valid


def trained_head(dim: int = DIM) -> TemporalHead:
    """A head whose output is not zero any more."""
    head = build_temporal(dim, FRAMES, seed=0)
    with torch.no_grad():
        head.out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return head


def test_at_first_a_clip_is_the_mean_of_its_frames() -> None:
    features, times, valid = clips()
    found = build_temporal(DIM, FRAMES, seed=0)(features, times, valid)
    for clip, count in enumerate([8, 5, 1, 3]):
        torch.testing.assert_close(found[clip], features[clip, :count].mean(0))


def test_the_head_of_frames_gives_a_clip_of_one_frame_the_logits_of_that_frame() -> None:
    features, times, valid = clips()
    found = build_temporal(DIM, FRAMES, seed=0)(features, times, valid)
    for kind in ("linear", "cosine", "angular"):
        head = build_head(Model(head=kind), DIM, seed=0)
        torch.testing.assert_close(head(found[2:3], None), head(features[2, :1], None))


def test_an_output_is_the_formula_computed_by_a_loop() -> None:
    features, times, valid = clips()
    head = trained_head()
    found = head(features, times, valid)
    for clip, count in enumerate([8, 5, 1, 3]):
        own = features[clip, :count]
        seen = head.norm(own) + positions(times[clip, :count], DIM)
        pooled = []
        for number, query in enumerate(head.query):
            part = slice(number * query.numel(), (number + 1) * query.numel())
            weights = (head.key(seen)[:, part] @ query / query.numel() ** 0.5).softmax(0)
            pooled.append(weights @ head.value(seen)[:, part])
        torch.testing.assert_close(found[clip], own.mean(0) + head.out(torch.cat(pooled)))


def test_padding_changes_neither_values_nor_gradients() -> None:
    features, times, valid = clips()
    head = trained_head()
    results = []
    for filler in (0.0, 1e4, float("nan")):
        given = torch.where(valid[..., None], features, filler).requires_grad_()
        head.zero_grad()
        out = head(given, torch.where(valid, times, 7.0), valid)
        out.square().sum().backward()
        grads = [p.grad.clone() for p in head.parameters()]
        results.append([out.detach(), given.grad[valid], *grads])
        assert given.grad[~valid].abs().sum() == 0
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)


def test_a_clip_without_frames_is_zero_and_has_finite_gradients() -> None:
    features, times, valid = clips()
    head = trained_head()
    out = head(features[4:], times[4:], valid[4:])
    assert torch.equal(out, torch.zeros(1, DIM))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_rows_of_frames_get_their_own_clip() -> None:
    features, times, valid = clips()
    head = trained_head()
    rows = head.of_frames(features.flatten(0, 1), times.flatten(), valid.flatten())
    assert torch.equal(rows.unflatten(0, (CLIPS, FRAMES))[:, 3], head(features, times, valid))
    assert torch.equal(rows[0], rows[7]) and not torch.equal(rows[7], rows[8])


def test_autocast_does_not_reach_it() -> None:
    features, times, valid = clips()
    head = trained_head()
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features.bfloat16().float(), times, valid)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(features.bfloat16().float(), times, valid))


def test_times_tell_neighbouring_frames_of_a_long_video_apart() -> None:
    coded = positions(torch.linspace(0, 1, 64), DIM)
    assert coded.shape == (64, DIM)
    assert torch.pdist(coded).min() > 0.5


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    first = build_temporal(DIM, FRAMES, seed=3).state_dict()
    torch.manual_seed(6)
    again, other = build_temporal(DIM, FRAMES, seed=3).state_dict(), build_temporal(DIM, FRAMES, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query"], other.query)


def sequences(signs: Tensor, seed: int) -> Tensor:
    """Frames ``s u + noise`` for ``signs`` ``[n, T]``; the noise of a clip is 0 in its mean."""
    generator = torch.Generator().manual_seed(9)
    direction = F.normalize(torch.randn(DIM, generator=generator), dim=0)
    noise = torch.randn(*signs.shape, DIM, generator=generator.manual_seed(seed))
    return 4 * signs[..., None] * direction + noise - noise.mean(1, keepdim=True)


def turning(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fakes turn from -u to +u over time, reals from +u to -u: the same frames in another order."""
    labels = torch.arange(count) % 2
    return sequences(torch.linspace(-1, 1, FRAMES) * (2 * labels[:, None] - 1), seed), labels


def flickering(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fakes jump between +u and -u in a random order, reals stay at 0: all means are equal."""
    labels = torch.arange(count) % 2
    orders = torch.rand(count, FRAMES, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return sequences(torch.tensor([1.0, -1.0]).repeat(FRAMES // 2)[orders] * labels[:, None], seed), labels


Make = Callable[[int, int], tuple[Tensor, Tensor]]


def accuracy(make: Make, pool: bool) -> float:
    """Of clips never seen, after training head and pooling (or the mean alone) on others."""
    torch.manual_seed(0)
    temporal, head = build_temporal(DIM, FRAMES, seed=0), LinearHead(DIM, normalize=False)
    times = torch.linspace(0, 1, FRAMES)[None]
    optimizer = torch.optim.AdamW([*temporal.parameters(), *head.parameters()], lr=3e-3)

    def logits(features: Tensor) -> Tensor:
        ones = torch.ones(features.shape[:2], dtype=torch.bool)
        clip = temporal(features, times.expand(len(features), -1), ones) if pool else features.mean(1)
        return head(clip)

    for step in range(100):
        features, labels = make(64, 1 + step)
        optimizer.zero_grad()
        F.cross_entropy(logits(features), labels).backward()
        optimizer.step()
    features, labels = make(400, 0)
    return float((logits(features).argmax(1) == labels).float().mean())


def test_it_learns_the_order_of_frames_which_the_mean_cannot() -> None:
    assert accuracy(turning, pool=True) > 0.95
    assert accuracy(turning, pool=False) < 0.6


def test_it_learns_flicker_which_the_mean_cannot() -> None:
    assert accuracy(flickering, pool=True) > 0.95
    assert accuracy(flickering, pool=False) < 0.6
