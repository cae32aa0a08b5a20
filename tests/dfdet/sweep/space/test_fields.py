"""Which config fields a sweep may search, and how a value of one is checked."""

from __future__ import annotations

from typing import Any

import pytest

from dfdet.cli import field_paths
from dfdet.errors import ConfigError
from dfdet.sweep.space.fields import DEFAULTS, REFUSED, checked, path_problem


def test_every_field_of_the_config_is_known() -> None:
    assert list(DEFAULTS) == field_paths()


def test_what_may_be_searched_is_what_is_learned() -> None:
    assert [path for path in DEFAULTS if path_problem(path) is None] == [
        "data.sampling",
        "data.clip_frames",
        "data.global_batch",
        "data.block_shards",
        "data.lanes",
        "data.crop_scale",
        "data.augment.strength",
        "data.augment.flip",
        "data.augment.rotate_degrees",
        "data.augment.translate",
        "data.augment.scale",
        "data.augment.blur",
        "data.augment.brightness",
        "data.augment.contrast",
        "data.augment.jpeg_quality",
        "data.augment.jpeg_first",
        "data.resize",
        "model.backbone",
        "model.pretrained",
        "model.image_size",
        "model.normalize",
        "model.head",
        "model.margin",
        "model.scale",
        "model.temporal",
        "tuning.mode",
        "tuning.lora_rank",
        "tuning.lora_alpha",
        "loss.ce",
        "loss.label_smoothing",
        "loss.alignment",
        "loss.uniformity",
        "loss.clip",
        "loss.consistency",
        "loss.slerp",
        "loss.slerp_low",
        "loss.slerp_high",
        "loss.pairwise_scope",
        "optim.lr",
        "optim.min_lr",
        "optim.head_lr_factor",
        "optim.weight_decay",
        "optim.clip_norm",
        "optim.schedule",
        "optim.restart_epochs",
        "optim.warmup_epochs",
        "engine.precision",
    ]


def test_every_refusal_is_of_a_field_or_a_section() -> None:
    sections = {path.rpartition(".")[0] for path in DEFAULTS}
    assert REFUSED.keys() <= DEFAULTS.keys() | sections


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (
            "run.seed",
            "not searched, since the best of several seeds is luck, not a setting; score every"
            " setting by --seeds",
        ),
        (
            "run.workers",
            "not searched, since it says where and how a setting is trained, not what it learns; set it for"
            " all, as with --run.workers",
        ),
        (
            "engine.micro_batch",
            "not searched, since it changes speed and memory, not what is learned; set it for all, as with"
            " --engine.micro_batch",
        ),
        (
            "optim.epochs",
            "not searched, since settings are compared at an equal budget; set it for all of them, as with"
            " --optim.epochs",
        ),
        (
            "optim.betas",
            "holds several values, a dimension one; set it for all settings, as with --optim.betas",
        ),
        ("loss.uniformty", "no such field; did you mean loss.uniformity?"),
        ("uniformity", "no such field; did you mean loss.uniformity?"),
        ("zzz", "no such field; see train.py --help for all fields"),
        ("data.augment", "a section, not a field; name a field of it, as data.augment.strength"),
    ],
)
def test_a_path_that_is_not_searched_tells_why(path: str, problem: str) -> None:
    assert path_problem(path) == problem


@pytest.mark.parametrize(
    ("path", "value", "held"),
    [
        ("loss.uniformity", "1e-4", 1e-4),
        ("data.augment.strength", 1, 1.0),
        ("tuning.lora_rank", 8.0, 8),
        ("model.head", "cosine", "cosine"),
    ],
)
def test_a_value_comes_back_as_its_field_holds_it(path: str, value: Any, held: Any) -> None:
    assert checked(path, value) == held
    assert type(checked(path, value)) is type(held)


def test_a_value_outside_its_fields_bounds_is_refused_with_the_bound() -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.augment\.strength=2\.5: input should be less than or equal to 2$"
    ):
        checked("data.augment.strength", 2.5)
