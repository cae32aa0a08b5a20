import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfdet.config import Model
from dfdet.model.heads import build_head


def features_and_labels(rows=64, dim=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, dim, generator=generator), torch.arange(rows) % 2


def margin_head(kind, margin=0.4, scale=16.0):
    return build_head(Model(head=kind, margin=margin, scale=scale), 16, seed=3)


def test_linear_head_is_a_linear_map_of_unit_features():
    features, _ = features_and_labels()
    head = build_head(Model(), 16, seed=0)
    expected = F.normalize(features) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features, None), expected)
    assert sum(p.numel() for p in build_head(Model(), 1024, seed=0).parameters()) == 2050


def test_linear_head_without_normalisation_sees_raw_features():
    features, _ = features_and_labels()
    head = build_head(Model(normalize=False), 16, seed=0)
    torch.testing.assert_close(head(features, None), head.linear(features))


def test_weights_depend_on_the_seed_only():
    torch.manual_seed(5)
    first = build_head(Model(), 16, seed=7)
    torch.rand(3)
    second, other = build_head(Model(), 16, seed=7), build_head(Model(), 16, seed=8)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


@pytest.mark.parametrize("kind", ["cosine", "angular"])
def test_without_labels_logits_are_scaled_cosines(kind):
    features, _ = features_and_labels()
    head = margin_head(kind)
    expected = 16.0 * F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features, None), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "angular"])
def test_margin_heads_equal_pytorch_metric_learning(kind):
    library = pytest.importorskip("pytorch_metric_learning.losses")
    features, labels = features_and_labels()
    head = margin_head(kind, margin=0.4, scale=16.0)
    if kind == "cosine":
        oracle = library.CosFaceLoss(2, 16, margin=0.4, scale=16.0)
    else:
        oracle = library.ArcFaceLoss(2, 16, margin=math.degrees(0.4), scale=16.0)
    oracle.W = nn.Parameter(head.weight.detach().T.clone())
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss, expected = F.cross_entropy(head(ours, labels), labels), oracle(theirs, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head.weight.grad, oracle.W.grad.T, atol=1e-5, rtol=1e-4)


def test_angular_margin_is_monotone_in_the_angle_beyond_pi_minus_m():
    head = margin_head("angular", margin=1.0)
    cosines = torch.linspace(-1, 1, 10_001)
    assert (head.with_margin(cosines).diff() > 0).all()


@pytest.mark.parametrize("kind", ["cosine", "angular"])
def test_gradients_are_finite_where_a_feature_is_its_class_weight(kind):
    head = margin_head(kind)
    features = torch.stack([head.weight[0], -head.weight[0]]).detach().requires_grad_()
    head(features, torch.tensor([0, 0])).sum().backward()
    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "cosine", "angular"])
def test_logits_are_float32_under_autocast(kind):
    features, labels = features_and_labels()
    head = build_head(Model(head=kind, margin=0.0 if kind == "linear" else 0.3), 16, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(features.bfloat16(), labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(features.bfloat16().float(), labels))
