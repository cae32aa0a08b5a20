"""The tiny tower: its fixed stem, its norms, where gradients go, bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfdet.tiny import CELL_PX, LUMA_CHROMA, DctStem, TinyViT, dct_bank


@pytest.fixture
def tower() -> TinyViT:
    torch.manual_seed(0)
    return TinyViT(48).eval()


def images(count: int = 3, side: int = 48) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def norms(tower: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in tower.modules() if isinstance(module, nn.LayerNorm)]


def tune_norms(tower: nn.Module) -> None:
    tower.requires_grad_(False)
    for norm in norms(tower):
        norm.requires_grad_(True)


def test_the_dct_of_a_channel_is_orthonormal():
    luma = dct_bank()[: CELL_PX**2] / torch.tensor(LUMA_CHROMA[0])[None, :, None, None]
    planes = luma[:, 0].flatten(1)
    torch.testing.assert_close(planes @ planes.T, torch.eye(CELL_PX**2), atol=1e-5, rtol=0)


def test_only_the_mean_filters_see_a_flat_grey_image():
    flat = torch.full((1, 3, CELL_PX, CELL_PX), 0.5)
    answers = torch.nn.functional.conv2d(flat, dct_bank()).flatten()
    assert answers[0].item() == pytest.approx(0.5 * CELL_PX, abs=1e-3)
    assert answers[1:].abs().max() < 0.02  # JFIF's chroma rows sum to zero within .001


def test_the_energies_of_the_stem_ignore_the_sign_of_the_detail():
    torch.manual_seed(0)
    stem = DctStem(32)
    noise = images(1, 16)
    cells = noise.unfold(2, 8, 8).unfold(3, 8, 8)
    detail = noise - cells.mean((4, 5)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(stem(detail), stem(-detail), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [16, 64, 96])
def test_features_have_the_announced_shape(side):
    tower = TinyViT(side, width=64, depth=2)
    features = tower(images(2, side))
    assert features.shape == (2, tower.output_dim) == (2, 64)
    assert features.dtype == torch.float32


def test_a_size_that_is_no_multiple_of_16_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        TinyViT(100)


def test_there_are_two_norms_a_block_and_two_more():
    assert len(norms(TinyViT(32, width=32, depth=3))) == 2 * 3 + 2


def test_equal_seeds_give_equal_towers():
    torch.manual_seed(5)
    first = TinyViT(32)
    torch.manual_seed(5)
    second = TinyViT(32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(6)
    assert not torch.equal(TinyViT(32).pos, first.pos)


def test_gradients_reach_every_norm_and_nothing_else(tower):
    tune_norms(tower)
    weights = torch.randn(tower.output_dim, generator=torch.Generator().manual_seed(2))
    (tower(images()) @ weights).square().sum().backward()
    for norm in norms(tower):
        assert norm.weight.grad.abs().max() > 0
        assert norm.bias.grad.abs().max() > 0
    frozen = [p for p in tower.parameters() if not p.requires_grad]
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)


def test_gradient_checkpointing_changes_no_gradient(tower):
    tune_norms(tower)
    tower(images()).square().mean().backward()
    plain = [norm.weight.grad.clone() for norm in norms(tower)]
    tower.zero_grad()
    tower.set_grad_checkpointing(True)
    tower(images()).square().mean().backward()
    for norm, gradient in zip(norms(tower), plain, strict=True):
        torch.testing.assert_close(norm.weight.grad, gradient)


def test_bf16_is_close_to_float32(tower):
    full = tower(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = tower(images())
    assert half.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(full - full.mean(0), half - full.mean(0))
    assert cosine.min() > 0.98
    assert (half - full).abs().max() < 0.1 * full.abs().max()


def test_weights_stored_in_bf16_equal_autocast_of_float32(tower):
    with torch.autocast("cpu", torch.bfloat16):
        expected = tower(images())
        for name, module in tower.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("stem"):
                module.weight.data = module.weight.data.bfloat16()
        torch.testing.assert_close(tower(images()), expected, atol=0, rtol=0)


def test_images_of_one_batch_do_not_see_each_other(tower):
    batch = images(4)
    torch.testing.assert_close(tower(batch)[2], tower(batch[2:3])[0], atol=1e-4, rtol=1e-4)
