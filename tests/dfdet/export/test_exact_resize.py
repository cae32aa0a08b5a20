import numpy as np
import pytest
import torch

from dfdet.data.prepare import pillow_resize
from dfdet.data.transforms import ToInput
from dfdet.errors import ConfigError
from dfdet.export.exact_resize import ExactResize
from dfdet.model.preprocess import Preprocess

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDES = [32, 224, 448, 600, *np.random.default_rng(3).integers(32, 601, 12).tolist()]


def noise(side, count=1, seed=0):
    """Half of it black and white, where rounding and clamping matter most."""
    crops = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    crops[:, side // 2 :] = (crops[:, side // 2 :] > 127) * np.uint8(255)
    return torch.from_numpy(crops)


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", SIDES)
def test_equals_the_preprocessing_of_training_at_any_side(side, how):
    graph = ExactResize(Preprocess(224, MEAN, STD, how))
    crops = noise(side, count=2)
    torch.testing.assert_close(graph(crops), ToInput(224, MEAN, STD, how)(crops), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [32, 95, 224, 317, 600])
def test_equals_pillow_to_the_bit_where_training_resized_with_it(side):
    graph = ExactResize(Preprocess(96, (0.0,) * 3, (1 / 255,) * 3, "bicubic"), pillow=True)
    crops = noise(side)
    theirs = torch.tensor(pillow_resize(crops[0].numpy(), 96)).permute(2, 0, 1)
    assert torch.equal(graph(crops)[0].round().byte(), theirs)


@pytest.mark.parametrize("pillow", [False, True])
@pytest.mark.parametrize("side", [224, 225, 600, 1792])
def test_sums_are_exact_in_float32_and_factors_in_tf32(side, pillow):
    graph = ExactResize(Preprocess(224, MEAN, STD, "bicubic"), pillow=pillow)
    high, low, _ = graph._weights(torch.empty(1, side))
    for part in (high, low):
        assert torch.equal(part, part.round())
        assert part.abs().max() <= 2**11
        assert part.double().abs().sum(dim=1).max() * 255 < 2**24


def test_another_filter_is_refused():
    with pytest.raises(ConfigError, match=r"'lanczos'.*bilinear and bicubic"):
        ExactResize(Preprocess(224, MEAN, STD, "lanczos"))
