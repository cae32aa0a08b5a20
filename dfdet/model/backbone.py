"""Vision towers by name: ``tiny``, any of open_clip's, or a timm model as ``timm/NAME``.

A tower maps images ``[B, 3, H, W]`` to features ``[B, D]`` before any projection, says D in
``output_dim``, and always runs in eval mode: no dropout, no stochastic depth, and batch norms keep
their statistics.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from torch import nn

from dfdet.config import Model
from dfdet.errors import ConfigError
from dfdet.model.preprocess import Preprocess
from dfdet.model.weights import Tensors, fit, load, pick, read_tensors

__all__ = ["Preprocess", "build_tower", "check_backbone"]

TINY = "tiny"
TIMM = "timm/"
HALVES = (0.5, 0.5, 0.5)
NEAREST = 5


def build_tower(config: Model, *, seed: int) -> tuple[nn.Module, Preprocess]:
    """The tower of a config on the CPU in float32, and what its images must look like.

    Args:
        config: Backbone, weights and image size.
        seed: Random weights depend on it only; the caller's random state stays as it is.

    Raises:
        ConfigError: Unknown backbone or tag.
        WeightsError: A file that is damaged or of another model.
    """
    check_name(config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.backbone == TINY:
            tower, preprocess = _build_tiny(config)
        elif config.backbone.startswith(TIMM):
            from dfdet.model import timm_tower

            tower, preprocess = timm_tower.build(config)
        else:
            from dfdet.model import openclip

            tower, preprocess = openclip.build(config)
    return tower.eval(), preprocess


def check_backbone(config: Model) -> None:
    """Checks backbone, tag or file in seconds and without building weights; downloads nothing.

    Raises:
        ConfigError: Unknown backbone (the nearest names are listed), unknown tag (the backbone's are).
        WeightsError: A file whose names or shapes do not fit.
    """
    check_name(config.backbone)
    if config.backbone == TINY:
        _check_tiny(config)
    elif config.backbone.startswith(TIMM):
        from dfdet.model import timm_tower

        timm_tower.check(config)
    else:
        from dfdet.model import openclip

        openclip.check(config)


def check_name(name: str) -> None:
    """Checks that a backbone of this name exists.

    Raises:
        ConfigError: It does not; the nearest names are listed.
    """
    if name == TINY:
        return
    import timm

    if name.startswith(TIMM):
        known = _is_timm(name.removeprefix(TIMM))
        names = [TIMM + other for other in [*timm.list_models(), *timm.list_pretrained()]]
    else:
        import open_clip

        names = [*open_clip.list_models(), TINY]
        known = name in names
        names += [TIMM + other for other in timm.list_models()]
    if not known:
        raise ConfigError(f"model.backbone={name}: no such model; the nearest are {_nearest(name, names)}")


def _is_timm(name: str) -> bool:
    """Whether timm has the model and, for ``model.tag``, the tag."""
    import timm

    return timm.is_model(name) and ("." not in name or name in timm.list_pretrained())


def _nearest(name: str, names: list[str]) -> str:
    lowered = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=NEAREST, cutoff=0.4)
    return (
        ", ".join(lowered[other] for other in close) or "tiny, ViT-L-14-quickgelu, timm/vit_base_patch16_224"
    )


def _build_tiny(config: Model) -> tuple[nn.Module, Preprocess]:
    _check_tiny_source(config)
    tower = _tiny(config.image_size)
    if config.pretrained:
        load(tower, _tiny_tensors(config), f"model.pretrained={config.pretrained}")
    return tower, Preprocess(config.image_size, HALVES, HALVES, "bicubic")


def _check_tiny(config: Model) -> None:
    _check_tiny_source(config)
    with torch.random.fork_rng(devices=[]):  # on the CPU: the tower is small, and its stem needs values
        expected = _tiny(config.image_size).state_dict()
    if config.pretrained:
        fit(_tiny_tensors(config, shapes_only=True), expected, f"model.pretrained={config.pretrained}")


def _tiny(image_size: int) -> nn.Module:
    from dfdet.model.tiny import TinyViT

    try:
        return TinyViT(image_size)
    except ValueError as error:
        raise ConfigError(f"model.image_size={image_size}: {error}") from error


def _tiny_tensors(config: Model, *, shapes_only: bool = False) -> Tensors:
    return pick(read_tensors(Path(str(config.pretrained)), shapes_only=shapes_only), ("tower.",))


def _check_tiny_source(config: Model) -> None:
    if config.pretrained and not Path(config.pretrained).is_file():
        raise ConfigError(
            f"model.pretrained={config.pretrained}: tiny has no published weights and there is no such file;"
            " set --model.pretrained None"
        )
