"""Heat maps: they lie where the evidence is, and explain the decision, on every kind of tower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.config import Config, Engine, Model
from dfdet.errors import ConfigError
from dfdet.model.detector import Detector, build_detector
from dfdet.model.openclip import OpenClipTower
from dfdet.prediction import evidence as module
from dfdet.prediction.evidence import evidence

SIDE = 64


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def detector_of(backbone: str, side: int = SIDE) -> Detector:
    config = Config(
        model=Model(backbone=backbone, pretrained=None, image_size=side), engine=Engine(precision="fp32")
    )
    return build_detector(config).eval()


def faces(count: int, seed: int, corner: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Noise; every other image is a fake, with a smooth patch in the corner."""
    generator = torch.Generator().manual_seed(seed)
    images, fake = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 0.3, torch.arange(count) % 2
    y, x = corner
    colour = torch.tensor([0.8, -0.6, 0.2])[:, None, None]
    images[fake == 1, :, y : y + 16, x : x + 16] = 0.1 * images[fake == 1, :, y : y + 16, x : x + 16] + colour
    return images, fake


def taught(detector: Detector, corner: tuple[int, int], steps: int, lr: float) -> Detector:
    optimizer = torch.optim.AdamW(detector.trainable().values(), lr=lr, weight_decay=0)
    for step in range(steps):
        images, fake = faces(16, step, corner)
        F.cross_entropy(detector.head(detector(images), None), fake).backward()
        optimizer.step()
        optimizer.zero_grad()
    return detector


def tiny_clip() -> Detector:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    from dfdet.model.preprocess import Preprocess
    from dfdet.model.tuning import TuningReport

    with torch.random.fork_rng():
        torch.manual_seed(0)
        cfg = CLIPVisionCfg(
            layers=3, width=64, head_width=32, patch_size=16, image_size=SIDE, block_type="custom"
        )
        visual = _build_vision_tower(32, cfg, quick_gelu=True)
        visual.proj = None
        tower = OpenClipTower(visual, 64)
        head = detector_of("tiny").head
        head.linear = nn.Linear(64, 2)
    half = (0.5, 0.5, 0.5)
    return Detector(
        tower, head, Preprocess(SIDE, half, half, "bicubic"), "fp32", TuningReport(0, 0, ())
    ).eval()


def build(kind: str) -> Detector:
    return tiny_clip() if kind == "clip" else detector_of(kind)


@pytest.mark.parametrize(
    ("kind", "steps", "lr", "corner"),
    [
        ("tiny", 30, 1e-2, (SIDE - 16, SIDE - 16)),
        ("clip", 80, 1e-3, (0, 0)),
        ("clip", 80, 1e-3, (SIDE - 16, 0)),
    ],
)
def test_the_map_lies_on_the_patch_that_a_model_was_taught_to_find(
    kind: str, steps: int, lr: float, corner: tuple[int, int]
) -> None:
    detector = taught(build(kind), corner, steps, lr)
    images, fake = faces(16, 1000, corner)
    with torch.no_grad():
        assert torch.equal(margins(detector, images) > 0, fake == 1), "it learned nothing to be shown"
    towards_fake = evidence(detector, images[fake == 1]).clamp_min(0)
    row, column = corner[0] // 16, corner[1] // 16
    share = towards_fake[:, row, column] / towards_fake.sum((1, 2))
    assert towards_fake.shape == (8, 4, 4)
    assert (towards_fake.flatten(1).argmax(1) == 4 * row + column).all()
    assert share.mean() > 0.6  # chance: 1/16


@pytest.mark.parametrize("kind", ["tiny", "clip", "timm/vit_tiny_patch16_224", "timm/resnet18"])
def test_a_map_sums_up_to_the_difference_of_the_logits_at_image_and_baseline(kind: str) -> None:
    detector = build(kind)
    images, _ = faces(3, 5, (0, 0))
    found = evidence(detector, images, steps=64)
    seam = module._seam(detector.tower)
    with torch.no_grad():
        before = margins(detector, images)
        handle = seam.module.register_forward_pre_hook(lambda _, args: (meaned(args[0], seam), *args[1:]))
        after = margins(detector, images)
        handle.remove()
    assert found.shape == (3, 4, 4)
    assert torch.allclose(found.sum((1, 2)), before - after, atol=0.02 * float((before - after).abs().max()))


def margins(detector: Detector, images: Tensor) -> Tensor:
    logits = detector.head(detector(images), None)
    return logits[:, 1] - logits[:, 0]


def meaned(tokens: Tensor, seam: module._Seam) -> Tensor:
    if tokens.ndim == 4:
        return tokens.mean((2, 3), keepdim=True).expand_as(tokens)
    patches = tokens[:, seam.prefix :]
    return torch.cat([tokens[:, : seam.prefix], patches.mean(1, keepdim=True).expand_as(patches)], 1)


def test_maps_of_channels_last_stages_keep_their_rows_and_columns() -> None:
    detector = detector_of("timm/swin_tiny_patch4_window7_224", 224)
    found = evidence(
        detector, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), steps=2
    )
    assert found.shape == (1, 14, 14)
    assert torch.isfinite(found).all() and found.abs().max() > 0


def test_a_map_does_not_depend_on_what_else_is_in_the_batch() -> None:
    detector = detector_of("tiny")
    images, _ = faces(5, 5, (0, 0))
    alone = torch.cat([evidence(detector, image[None]) for image in images])
    assert torch.allclose(evidence(detector, images), alone, atol=1e-5)


def test_a_map_leaves_the_detector_as_it_was() -> None:
    detector = detector_of("tiny")
    images, _ = faces(2, 5, (0, 0))
    with torch.no_grad():
        before = detector(images)
    evidence(detector, images)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in detector.parameters())
    with torch.no_grad():
        assert torch.equal(detector(images), before)


def test_a_tower_without_known_patches_is_refused() -> None:
    detector = detector_of("tiny")
    detector.tower = nn.Flatten()
    with pytest.raises(ConfigError, match="no heat map: the patches of a Flatten"):
        evidence(detector, torch.zeros(1, 3, SIDE, SIDE))
