import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dfdet.config import Loss, Model
from dfdet.model.heads import build_head
from dfdet.training.losses import (
    DetectionLoss,
    alignment,
    cross_entropy,
    slerp,
    slerp_partners,
    slerp_positions,
    uniformity,
)

KEY = (1, 2, 3)


def naive_alignment(z, labels, valid):
    pairs = [
        (z[i] - z[j]).square().sum()
        for i in range(len(z))
        for j in range(i + 1, len(z))
        if valid[i] and valid[j] and labels[i] == labels[j]
    ]
    return torch.stack(pairs).mean() if pairs else z.sum() * 0


def naive_uniformity(z, valid):
    pairs = [
        (-2 * (z[i] - z[j]).square().sum()).exp()
        for i in range(len(z))
        for j in range(i + 1, len(z))
        if valid[i] and valid[j]
    ]
    return torch.stack(pairs).mean().clamp_min(1e-6).log() if pairs else z.sum() * 0


@st.composite
def batches(draw):
    rows, dim = draw(st.integers(1, 9)), draw(st.integers(2, 12))
    labels = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    features = torch.randn(rows, dim, generator=generator)
    if draw(st.booleans()):
        features[-1] = features[0]  # coinciding points
    return features, labels, valid


def value_and_gradient(function, features):
    leaf = features.clone().requires_grad_()
    value = function(F.normalize(leaf.double() if features.dtype == torch.float64 else leaf, dim=1))
    value.backward()
    return value.detach(), leaf.grad


@settings(max_examples=80, deadline=None)
@given(batches())
def test_alignment_equals_the_pairwise_formula(batch):
    features, labels, valid = batch
    value, gradient = value_and_gradient(lambda z: alignment(z, labels, valid), features)
    naive, naive_gradient = value_and_gradient(lambda z: naive_alignment(z, labels, valid), features.double())
    torch.testing.assert_close(value.double(), naive, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), naive_gradient, atol=1e-5, rtol=1e-4)


@settings(max_examples=80, deadline=None)
@given(batches())
def test_uniformity_equals_the_pairwise_formula(batch):
    features, _, valid = batch
    value, gradient = value_and_gradient(lambda z: uniformity(z, valid), features)
    naive, naive_gradient = value_and_gradient(lambda z: naive_uniformity(z, valid), features.double())
    torch.testing.assert_close(value.double(), naive, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(gradient.double(), naive_gradient, atol=1e-5, rtol=1e-4)


def test_uniformity_has_a_floor():
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(poles, torch.ones(2).bool()).item() == pytest.approx(-8.0)  # exp(-2 x 4)
    assert uniformity(poles, torch.ones(2).bool(), t=10.0).item() == pytest.approx(math.log(1e-6))


def test_all_points_coinciding_give_zero_and_finite_gradients():
    features = torch.ones(6, 4, requires_grad=True)
    z, valid = F.normalize(features, dim=1), torch.ones(6).bool()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    total = uniformity(z, valid) + alignment(z, labels, valid)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert features.grad.abs().max() < 1e-5


def test_cross_entropy_of_the_valid_rows():
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, -1, 7])
    valid = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    expected = F.cross_entropy(logits[:4], labels[:4], label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, labels, valid, 0.1), expected)


def test_partners_are_a_permutation_within_each_class():
    labels, valid = torch.arange(40) % 2, torch.arange(40) % 5 != 0
    partners = slerp_partners(labels, valid, KEY)
    assert sorted(partners.tolist()) == list(range(40))
    assert torch.equal(labels[partners][valid], labels[valid])
    assert torch.equal(partners[~valid], torch.arange(40)[~valid])
    assert valid[partners[valid]].all()
    assert (partners != torch.arange(40)).sum() > 20


def test_a_sample_alone_in_its_class_keeps_itself():
    partners = slerp_partners(torch.tensor([0, 1, 0]), torch.ones(3).bool(), KEY)
    assert partners[1] == 1


def test_partners_and_positions_change_with_seed_epoch_and_batch_only():
    labels, valid = torch.arange(64) % 2, torch.ones(64).bool()
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [
        (*slerp_partners(labels, valid, key).tolist(), *slerp_positions(64, key, 0, 1).tolist())
        for key in keys
    ]
    assert len(set(draws)) == 4
    assert draws[0] == (
        *slerp_partners(labels, valid, (0, 0, 0)).tolist(), *slerp_positions(64, (0, 0, 0), 0, 1).tolist()
    )  # fmt: skip


def test_positions_follow_the_row_in_the_global_batch():
    whole = slerp_positions(10, KEY, 0.2, 0.6)
    assert torch.equal(whole[4:], slerp_positions(6, KEY, 0.2, 0.6, first=4))
    many = slerp_positions(20_000, KEY, 0.2, 0.6)
    assert many.min() >= 0.2
    assert many.max() < 0.6
    assert many.mean().item() == pytest.approx(0.4, abs=0.005)


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 1000))
def test_slerp_stays_on_the_sphere_and_on_the_arc(batch, seed):
    features, labels, valid = batch
    z = F.normalize(features, dim=1)
    partners, t = slerp_partners(labels, valid, (seed, 0, 0)), slerp_positions(len(z), (seed, 0, 0), 0, 1)
    mixed = slerp(z, partners, t)
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(len(z)), atol=1e-6, rtol=0)
    z64 = z.double().numpy()
    angle = np.arccos(np.clip((z64 * z64[partners]).sum(1), -1, 1))
    travelled = np.arccos(np.clip((mixed.double().numpy() * z64).sum(1), -1, 1))
    arcs = angle < math.pi - 0.01
    np.testing.assert_allclose(travelled[arcs], (t.numpy() * angle)[arcs], atol=2e-3)


def test_slerp_with_an_equal_and_an_antipodal_partner_is_finite():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [-0.6, -0.8]], requires_grad=True)
    mixed = slerp(z, torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.3))
    torch.testing.assert_close(mixed, z)
    mixed.square().sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["linear", "cosine", "angular"])
def test_everything_on_is_finite_for_coinciding_low_precision_features(dtype, kind):
    head = build_head(Model(head=kind, margin=0.0 if kind == "linear" else 0.3), 8, seed=0)
    features = torch.ones(6, 8, dtype=dtype, requires_grad=True)
    loss = DetectionLoss(Loss(slerp=True, alignment=0.1, uniformity=0.5, label_smoothing=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(features, torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(6).bool(), head, KEY)
    terms.total.backward()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in vars(terms).values())
    assert features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_a_batch_of_one_keeps_its_cross_entropy():
    head = build_head(Model(), 8, seed=0)
    features = torch.randn(1, 8, requires_grad=True)
    loss = DetectionLoss(Loss(slerp=True, alignment=0.1, uniformity=0.5))
    terms = loss(features, torch.tensor([1]), torch.ones(1).bool(), head, KEY)
    terms.total.backward()
    assert terms.alignment == 0
    assert terms.uniformity == 0
    torch.testing.assert_close(terms.total, F.cross_entropy(head(features, None), torch.tensor([1])))
    assert features.grad.abs().sum() > 0


def test_a_fully_masked_batch_is_zero_with_zero_gradients():
    head = build_head(Model(), 8, seed=0)
    features = torch.randn(4, 8, requires_grad=True)
    loss = DetectionLoss(Loss(slerp=True, alignment=0.1, uniformity=0.5))
    terms = loss(features, torch.tensor([0, 1, 0, 1]), torch.zeros(4).bool(), head, KEY)
    terms.total.backward()
    assert terms.total == 0
    assert features.grad.abs().max() == 0


def test_masked_rows_change_nothing_even_as_nan():
    head = build_head(Model(), 8, seed=0)
    features, labels = torch.randn(6, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    valid = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    loss = DetectionLoss(Loss(alignment=0.1, uniformity=0.5, label_smoothing=0.1))
    broken = features.clone()
    broken[4:] = math.nan
    broken.requires_grad_()
    masked = loss(broken, torch.tensor([0, 1, 0, 1, -1, 9]), valid, head, KEY)
    alone = loss(features[:4], labels[:4], valid[:4], head, KEY)
    masked.total.backward()
    torch.testing.assert_close(masked.total, alone.total)
    assert broken.grad[4:].abs().max() == 0
    assert broken.grad.isfinite().all()


def test_total_is_the_weighted_sum_of_the_terms():
    head = build_head(Model(), 8, seed=0)
    features, labels, valid = torch.randn(8, 8), torch.arange(8) % 2, torch.ones(8).bool()
    terms = DetectionLoss(Loss(ce=2.0, alignment=0.1, uniformity=0.5))(features, labels, valid, head, KEY)
    torch.testing.assert_close(terms.total, 2 * terms.ce + 0.1 * terms.alignment + 0.5 * terms.uniformity)


def test_a_head_on_raw_features_sees_them_at_their_own_norm():
    head = build_head(Model(normalize=False), 8, seed=0)
    features, labels = 5 * torch.randn(2, 8), torch.tensor([0, 1])  # alone in their classes: slerp keeps them
    plain = DetectionLoss(Loss())(features, labels, torch.ones(2).bool(), head, KEY)
    mixed = DetectionLoss(Loss(slerp=True))(features, labels, torch.ones(2).bool(), head, KEY)
    torch.testing.assert_close(plain.total, F.cross_entropy(head.linear(features), labels))
    torch.testing.assert_close(mixed.total, plain.total)


def test_a_weight_of_zero_reports_the_term_without_its_gradient():
    head = build_head(Model(), 8, seed=0)
    features = torch.randn(4, 8, requires_grad=True)
    labels, valid = torch.tensor([0, 1, 0, 1]), torch.ones(4).bool()
    terms = DetectionLoss(Loss())(features, labels, valid, head, KEY)
    assert torch.equal(terms.total, terms.ce)
    assert terms.uniformity < 0 < terms.alignment
