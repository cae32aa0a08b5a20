import pytest
import timm
import torch
from open_clip import get_model_config
from torch import nn

from dfdet.config import Tuning
from dfdet.errors import ConfigError
from dfdet.model.openclip import _bare_visual, strip_projection
from dfdet.model.tuning import LoraLinear, apply_tuning


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.post = nn.LayerNorm(4)
        self.bare = nn.LayerNorm(4, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.post(self.first(x))
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


def meta_visual(name, image_size=224):
    with torch.device("meta"):
        visual = _bare_visual(name, image_size)
        strip_projection(visual)
    return visual


@pytest.mark.parametrize(
    ("name", "image_size", "norms", "parameters"),
    [
        ("ViT-L-14-quickgelu", 224, 50, 102_400),
        ("ViT-B-32-quickgelu", 224, 26, 39_936),
        ("ViT-H-14", 224, 66, 168_960),
        ("PE-Core-L-14-336", 336, 51, 104_448),
    ],
)
def test_norms_of_published_towers(name, image_size, norms, parameters):
    assert get_model_config(name) is not None
    report = apply_tuning(meta_visual(name, image_size), Tuning(mode="ln"))
    assert (report.norm_modules, report.parameters) == (norms, parameters)


@pytest.mark.parametrize(("model", "norms"), [("resnet18", 20), ("mobilenetv3_small_050", 34)])
def test_batch_norms_are_found_by_type(model, norms):
    tower = timm.create_model(model, num_classes=0)
    report = apply_tuning(tower, Tuning(mode="ln"))
    assert report.norm_modules == norms
    assert "layer2.0.downsample.1.weight" in report.names or model != "resnet18"  # "norm" is not in its name


def test_only_norms_with_parameters_train():
    tower = Small()
    report = apply_tuning(tower, Tuning(mode="ln"))
    assert report.names == ("post.weight", "post.bias")
    assert {name for name, p in tower.named_parameters() if p.requires_grad} == {"post.weight", "post.bias"}
    assert (report.norm_modules, report.parameters) == (1, 8)


def test_probe_trains_nothing_and_full_trains_all():
    assert apply_tuning(Small(), Tuning(mode="probe")).parameters == 0
    assert apply_tuning(Small(), Tuning(mode="full")).parameters == sum(
        p.numel() for p in Small().parameters()
    )


@pytest.mark.parametrize("mode", ["ln", "lora"])
def test_a_selector_that_matches_nothing_is_refused(mode):
    with pytest.raises(ConfigError, match=r"tuning\.mode: this tower has no .* set --tuning\.mode"):
        apply_tuning(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), Tuning(mode=mode))


def test_lora_starts_at_the_pretrained_function():
    tower, x = Small(), torch.randn(2, 5, 4)
    expected = tower(x)
    apply_tuning(tower, Tuning(mode="lora", lora_rank=2))
    torch.testing.assert_close(tower(x), expected)


def test_lora_names_and_counts():
    tower = Small()
    before = set(tower.state_dict())
    report = apply_tuning(tower, Tuning(mode="lora", lora_rank=2))
    assert report.names == (
        "first.lora_down",
        "first.lora_up",
        "attention.parametrizations.in_proj_weight.0.lora_down",
        "attention.parametrizations.in_proj_weight.0.lora_up",
        "last.lora_down",
        "last.lora_up",
    )
    assert report.parameters == 2 * (8 + 16 + 7)
    assert before - set(tower.state_dict()) == {"attention.in_proj_weight"}


def test_lora_updates_are_the_scaled_product():
    tower, x = Small(), torch.randn(2, 5, 4)
    apply_tuning(tower, Tuning(mode="lora", lora_rank=2, lora_alpha=6.0))
    assert isinstance(tower.first, LoraLinear)
    for name, parameter in tower.named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter)
    delta = 3.0 * tower.first.lora_up @ tower.first.lora_down
    torch.testing.assert_close(
        tower.first(x), nn.functional.linear(x, tower.first.weight + delta, tower.first.bias)
    )
    tower(x).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in tower.parameters())


def test_lora_depends_on_the_seed_only():
    towers = [Small() for _ in range(3)]
    for tower, seed in zip(towers, (1, 1, 2), strict=True):
        apply_tuning(tower, Tuning(mode="lora"), seed=seed)
    first, second, third = (tower.first.lora_down for tower in towers)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
