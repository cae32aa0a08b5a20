"""Blocks compiled in place, and eager again where the compiler fails."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.model import compiled
from dfdet.model.detector import Detector, build_detector
from dfdet.training.engine import dry_batch
from dfdet.training.losses import DetectionLoss
from dfdet.training.schedule import batch_layout

PIXELS, SAMPLES = 32, 4
CPU = torch.device("cpu")


def config_for(**values: Any) -> Config:
    tiny = {"model.backbone": "tiny", "model.pretrained": None, "model.image_size": PIXELS}
    return Config().replace(tiny | {"engine.precision": "fp32", "data.global_batch": SAMPLES, **values})


def loss_and_gradients(detector: Detector, config: Config) -> list[Tensor]:
    images = torch.randn(SAMPLES, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    labels, valid = torch.arange(SAMPLES) % 2, torch.ones(SAMPLES, dtype=torch.bool)
    total = DetectionLoss(config.loss)(detector(images), labels, valid, detector.head, (0, 0, 0)).total
    total.backward()
    found = [total.detach(), *(p.grad.clone() for p in detector.trainable().values())]
    detector.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_tower_gives_the_same_under_the_same_names(checkpointing: bool) -> None:
    eager = build_detector(config_for())
    config = config_for(**{"engine.compile": True, "engine.gradient_checkpointing": checkpointing})
    detector = build_detector(config)
    dry_batch(detector, config, batch_layout(SAMPLES, 1, None), PIXELS, CPU)
    assert compiled.is_compiled(detector.tower)
    assert list(detector.state_dict()) == list(eager.state_dict())
    for ours, theirs in zip(
        loss_and_gradients(detector, config), loss_and_gradients(eager, config), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_the_tower_stays_eager_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/no/compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    config = config_for(**{"engine.compile": True})
    detector = build_detector(config)
    with caplog.at_level(logging.WARNING, "dfdet.model.compiled"):
        dry_batch(detector, config, batch_layout(SAMPLES, 1, None), PIXELS, CPU)
    assert not compiled.is_compiled(detector.tower)
    assert all(p.grad is None for p in detector.parameters())
    [line] = [record.getMessage() for record in caplog.records if record.name == "dfdet.model.compiled"]
    assert line.startswith("engine.compile=True: compilation failed, the tower stays eager (")
    assert "/no/compiler" in line
    loss_and_gradients(detector, config)


def test_other_failures_are_raised_where_nothing_is_compiled() -> None:
    with pytest.raises(ZeroDivisionError), compiled.or_eager(nn.Linear(1, 1)):
        raise ZeroDivisionError


def test_zero_3_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^engine.compile=True: not with engine.zero_stage=3"):
        config_for(**{"engine.compile": True, "engine.zero_stage": 3})


def test_a_tower_that_repeats_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^engine.compile=True: Linear has no list of equal blocks"):
        compiled.compile_blocks(nn.Linear(2, 2))


def test_the_blocks_are_those_of_the_outermost_lists() -> None:
    stages = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(3)))
    mixed = nn.Sequential(nn.Conv2d(1, 1, 1), stages, nn.Sequential(nn.GELU()))
    assert compiled.stacked_blocks(mixed) == list(stages)
