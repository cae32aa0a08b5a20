"""Recipes hold the values that were published, and say where."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dfdet.config import Augment, Config
from dfdet.recipes import RECIPES

CLIP = {
    "model.backbone": "ViT-L-14-quickgelu",
    "model.pretrained": "openai",
    "model.image_size": 224,
    "model.head": "linear",
    "model.margin": 0.0,
    "data.sampling": "single",
    "data.global_batch": 128,
    "data.crop_scale": 1.3,
    "loss.ce": 1.0,
    "loss.label_smoothing": 0.0,
    "optim.betas": (0.9, 0.999),
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 0.0,
    "engine.precision": "bf16",
}
PAPER = CLIP | {
    "data.augment.strength": 0.0,
    "optim.lr": 8e-5,
    "optim.min_lr": 5e-5,
    "optim.epochs": 10,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 0.0,
    "optim.patience": 0,
}
PLAIN = {"loss.slerp": False, "loss.alignment": 0.0, "loss.uniformity": 0.0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "linear_probe": PAPER | PLAIN | {"tuning.mode": "probe", "model.normalize": False},
    "ln": PAPER | PLAIN | {"tuning.mode": "ln", "model.normalize": False},
    "ln_norm": PAPER | PLAIN | {"tuning.mode": "ln", "model.normalize": True},
    "paper": PAPER
    | {
        "tuning.mode": "ln",
        "model.normalize": True,
        "loss.slerp": True,
        "loss.slerp_low": 0.0,
        "loss.slerp_high": 1.0,
        "loss.alignment": 0.1,
        "loss.uniformity": 0.1,
        "loss.pairwise_scope": "global",
    },
    "gend": CLIP
    | {
        "tuning.mode": "ln",
        "model.normalize": True,
        "loss.slerp": False,
        "loss.alignment": 0.1,
        "loss.uniformity": 0.5,
        "optim.lr": 3e-4,
        "optim.min_lr": 1e-5,
        "optim.epochs": 30,
        "optim.schedule": "restarts",
        "optim.restart_epochs": 10.0,
        "optim.warmup_epochs": 1.0,
        "optim.patience": 30,
        "data.augment.strength": 1.0,
    },
}
RESULTS = {
    "linear_probe": ["78.13", "88.15", "73.62", "79.28", "63.65"],
    "ln": ["94.88", "96.83", "86.41", "92.24", "83.57"],
    "ln_norm": ["96.21", "98.18", "87.82", "92.72", "88.81"],
    "gend": ["96.5", "97.3", "87.0", "93.5"],
}


def value(config: Config, path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = getattr(node, part)
    return node


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_values(name: str) -> None:
    config = RECIPES[name]()
    assert {path: value(config, path) for path in PUBLISHED[name]} == PUBLISHED[name]


def test_gend_augments_as_published() -> None:
    assert RECIPES["gend"]().data.augment == Augment(
        strength=1.0,
        flip=0.5,
        rotate_degrees=10.0,
        translate=0.1,
        scale=0.1,
        blur=0.1,
        brightness=0.1,
        contrast=0.1,
        jpeg_quality=40,
    )


@pytest.mark.parametrize("name", RESULTS)
def test_a_docstring_has_the_published_results(name: str) -> None:
    documentation = str(RECIPES[name].__doc__)
    assert [number for number in RESULTS[name] if number not in documentation] == []


def test_the_docstrings_name_the_open_contradictions() -> None:
    assert "open contradiction" in str(RECIPES["paper"].__doc__)
    assert "the code does not" in str(RECIPES["gend"].__doc__)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo", "temporal"}))
def test_a_docstring_cites_the_paper(name: str) -> None:
    cited = re.findall(r"arXiv (\d{4}\.\d{5})", str(RECIPES[name].__doc__))
    assert cited == ["2508.06248" if name == "gend" else "2503.19683"]


@pytest.mark.parametrize("name", ["demo", "temporal"])
def test_recipes_of_our_own_claim_no_published_result(name: str) -> None:
    assert "no result was published" in " ".join(str(RECIPES[name].__doc__).split())


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_knows_its_recipe(name: str) -> None:
    assert RECIPES[name]().run.recipe == name


def test_the_recipes_are_those_that_were_promised() -> None:
    assert list(RECIPES) == ["demo", "linear_probe", "ln", "ln_norm", "paper", "gend", "temporal"]


def test_the_demo_runs_on_two_cpu_workers_with_pairs() -> None:
    demo = RECIPES["demo"]()
    assert (demo.run.workers, demo.model.backbone, demo.model.pretrained) == (2, "tiny", None)
    assert (demo.data.sampling, demo.engine.precision) == ("rotate", "fp32")
