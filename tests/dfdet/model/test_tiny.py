import pytest
import torch
from torch import nn

from dfdet.config import Tuning, from_dict
from dfdet.model.detector import build_detector
from dfdet.model.tiny import CELL_PX, LUMA_CHROMA, DctStem, TinyViT, dct_bank
from dfdet.model.tuning import apply_tuning

SIDE = 32


def images(count=3, side=SIDE):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def tower(**changes):
    torch.manual_seed(0)
    return TinyViT(**{"image_size": SIDE, "width": 48, "depth": 2, **changes}).eval()


@pytest.mark.parametrize(("side", "width", "heads"), [(16, 24, 2), (32, 48, 4), (96, 192, 4)])
def test_features_are_float32_of_the_towers_width(side, width, heads):
    model = tower(image_size=side, width=width, heads=heads)
    features = model(images(side=side))
    assert features.shape == (3, width)
    assert features.dtype == torch.float32
    assert model.output_dim == width
    assert features.isfinite().all()


def test_an_image_alone_has_the_features_it_has_in_a_batch():
    model = tower()
    torch.testing.assert_close(model(images())[1:2], model(images()[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 4])
def test_layer_norms_are_two_a_block_and_two(depth):
    assert sum(isinstance(m, nn.LayerNorm) for m in tower(depth=depth).modules()) == 2 * depth + 2


@pytest.mark.parametrize("side", [40, 100])
def test_an_image_size_off_the_patch_grid_is_refused(side):
    with pytest.raises(ValueError, match=f"image_size={side}: the tiny tower needs a multiple of 16"):
        tower(image_size=side)


def test_under_ln_tuning_gradients_reach_all_layer_norms_and_nothing_else():
    model = tower()
    report = apply_tuning(model, Tuning(mode="ln"))
    assert report.norm_modules == 6
    assert report.parameters == 6 * 2 * 48
    model(images()).square().sum().backward()
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert {name for name, p in model.named_parameters() if p.grad is not None} == norms == set(report.names)
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)


def test_bf16_features_are_close_to_float32():
    settings = {"model": {"backbone": "tiny", "pretrained": None, "image_size": SIDE}}
    exact, rounded = (
        build_detector(from_dict({**settings, "engine": {"precision": precision}}))
        for precision in ("fp32", "bf16")
    )
    with torch.no_grad():
        a, b = exact(images()), rounded(images())
    assert b.dtype == torch.float32
    assert 0 < (a - b).norm() / a.norm() < 0.02


def test_checkpointing_gives_the_same_gradients_and_recomputes(monkeypatch):
    plain, saving = tower(), tower()
    saving.set_grad_checkpointing()
    calls = []
    saving.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, saving):
        model(images()).square().sum().backward()
    assert len(calls) == 2
    for (name, expected), got in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)
    with torch.no_grad():
        saving(images())
    assert len(calls) == 3


def test_the_dct_bank_is_orthonormal_in_each_colour():
    bank = dct_bank().view(3, CELL_PX**2, 3, CELL_PX**2)
    for plane, weights in enumerate(LUMA_CHROMA):
        for channel, weight in enumerate(weights):
            basis = bank[plane, :, channel] / weight
            torch.testing.assert_close(basis @ basis.T, torch.eye(CELL_PX**2), rtol=0, atol=1e-5)


def test_a_flat_image_has_only_mean_colour():
    cells = nn.functional.conv2d(torch.ones(1, 3, 8, 8), dct_bank(), stride=8).flatten()
    luma, rest = cells[0], cells[1:]
    assert luma == pytest.approx(8.0, abs=1e-4)
    assert rest.abs().max() < 1e-3


def test_the_stem_tells_a_flat_patch_from_a_noisy_one():
    torch.manual_seed(0)
    stem = DctStem(48)
    flat = torch.zeros(1, 3, 16, 32)
    flat[..., 16:] = torch.randn(3, 16, 16) * 0.1
    tokens = stem(flat)
    assert tokens.shape == (1, 2, 48)
    assert (tokens[0, 0] - tokens[0, 1]).norm() > 1


def test_the_stem_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    stem = DctStem(48)
    expected = stem(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stem(images()), expected)
