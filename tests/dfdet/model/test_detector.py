import copy

import pytest
import timm
import torch
from torch import nn

from dfdet.config import from_dict
from dfdet.errors import ConfigError, WeightsError
from dfdet.model.detector import build_detector, frozen_sha256

SIDE = 32
VIT = {"backbone": "timm/vit_tiny_patch16_224"}


def tiny(precision="fp32", mode="ln", **changes):
    return build_detector(
        from_dict(
            {
                "model": {
                    "backbone": "tiny",
                    "pretrained": None,
                    "image_size": SIDE,
                    **changes.pop("model", {}),
                },
                "tuning": {"mode": mode},
                "engine": {"precision": precision, **changes.pop("engine", {})},
                "run": {"seed": changes.pop("seed", 0)},
            }
        )
    )


def images(count=4):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_features_and_probabilities():
    detector = tiny()
    features = detector(images())
    assert features.shape == (4, detector.tower.output_dim)
    assert features.dtype == torch.float32
    expected = detector.head(features, None).softmax(1)[:, 1]
    assert torch.equal(detector.fake_probability(features), expected)


def test_building_is_deterministic_in_the_seed_and_leaves_the_random_state():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = tiny(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, other = tiny(seed=3), tiny(seed=4)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert frozen_sha256(first) == frozen_sha256(second) != frozen_sha256(other)


def test_trainable_and_frozen_share_out_tower_and_head():
    detector = tiny()
    trained, frozen = detector.trainable(), detector.frozen()
    assert set(trained) == {f"tower.{name}" for name in detector.tuning.names} | {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert set(trained) | set(frozen) == set(detector.state_dict())
    assert not set(trained) & set(frozen)
    assert (
        sum(p.numel() for p in trained.values())
        == detector.tuning.parameters + 2 * detector.tower.output_dim + 2
    )


def test_the_frozen_hash_follows_frozen_tensors_only():
    detector = tiny()
    before = frozen_sha256(detector)
    with torch.no_grad():
        next(iter(detector.trainable().values())).add_(1)
    assert frozen_sha256(detector) == before
    next(iter(detector.frozen().values())).view(-1)[0] += 1
    assert frozen_sha256(detector) != before


def test_trained_and_frozen_tensors_round_trip():
    source, target = tiny(seed=1), tiny(seed=2)
    target.load_trained({k: v.detach().clone() for k, v in source.trainable().items()})
    target.load_frozen(source.frozen())
    assert torch.equal(source(images()), target(images()))


def test_tensors_of_another_model_are_refused():
    detector = tiny()
    tensors = {k: v.detach() for k, v in detector.trainable().items()}
    tensors["head.linear.weight"] = torch.zeros(2, 3)
    del tensors["head.linear.bias"]
    tensors["other"] = torch.zeros(1)
    with pytest.raises(
        WeightsError, match=r"1 missing \(head.linear.bias\); 1 unexpected \(other\); 1 of other shape"
    ):
        detector.load_trained(tensors)


def test_the_tower_stays_in_eval_mode_and_batch_norm_keeps_its_statistics():
    detector = build_detector(
        from_dict(
            {
                "model": {"backbone": "timm/resnet10t", "pretrained": None, "image_size": SIDE},
                "engine": {"precision": "fp32"},
            }
        )
    ).train()
    assert not any(module.training for module in detector.tower.modules())
    before = copy.deepcopy(detector.frozen())
    detector(images()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in detector.frozen().items())


def test_bf16_stores_frozen_matrices_only_and_changes_no_bit_of_autocast():
    stored, cast = tiny("bf16", model=VIT), tiny("fp32", model=VIT)
    cast.precision = "bf16"
    dtypes = {name: tensor.dtype for name, tensor in stored.frozen().items()}
    assert dtypes["tower.trunk.blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert dtypes["tower.trunk.blocks.0.attn.qkv.bias"] == torch.float32
    assert dtypes["tower.trunk.cls_token"] == dtypes["tower.trunk.pos_embed"] == torch.float32
    assert all(p.dtype == torch.float32 for p in stored.trainable().values())
    features = stored(images())
    assert features.dtype == torch.float32
    assert torch.equal(features, cast(images()))
    features.sum().backward()
    assert all(p.grad.dtype == torch.float32 for n, p in stored.trainable().items() if n.startswith("tower"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_bf16_trains_in_float32_in_other_modes(mode):
    detector = tiny("bf16", mode, model=VIT)
    detector.head(detector(images()), None).sum().backward()
    for parameter in detector.trainable().values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None


def test_bf16_first_pass_without_gradients_does_not_spoil_the_second():
    once, twice = tiny("bf16", "full", model=VIT), tiny("bf16", "full", model=VIT)
    once(images()).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # an engine's own autocast around both passes
        with torch.no_grad():
            twice(images())
        twice(images()).sum().backward()
    for name, parameter in once.trainable().items():
        if name.startswith("tower"):
            torch.testing.assert_close(twice.trainable()[name].grad, parameter.grad)


@pytest.mark.parametrize("backbone", ["tiny", "timm/vit_tiny_patch16_224"])
def test_checkpointing_gives_the_same_gradients(backbone):
    plain = tiny(model={"backbone": backbone})
    saving = tiny(model={"backbone": backbone}, engine={"gradient_checkpointing": True})
    for detector in (plain, saving):
        detector(images()).square().sum().backward()
    for name, parameter in plain.trainable().items():
        if name.startswith("tower"):
            torch.testing.assert_close(saving.trainable()[name].grad, parameter.grad)


def test_a_tower_that_cannot_checkpoint_is_refused(monkeypatch):
    monkeypatch.delattr("dfdet.model.tiny.TinyViT.set_grad_checkpointing")
    with pytest.raises(ConfigError, match=r"engine\.gradient_checkpointing=True: this tower cannot"):
        tiny(engine={"gradient_checkpointing": True})


def test_the_head_takes_the_towers_width():
    detector = tiny(model={"backbone": "timm/mobilenetv3_small_050"})
    assert isinstance(timm.create_model("mobilenetv3_small_050"), nn.Module)
    assert detector.head.linear.in_features == detector(images(2)).shape[1] == detector.tower.output_dim
