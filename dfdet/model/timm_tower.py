"""timm towers by name: pooled features, as ``timm/NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dfdet.config import Model
from dfdet.errors import ConfigError, WeightsError
from dfdet.model.preprocess import Channels, Preprocess
from dfdet.model.weights import Tensors, fit, load, pick, read_tensors

PREFIX = "timm/"
HUB = "timm"
PREFIXES = ("tower.trunk.", "visual.trunk.", "trunk.")
UNUSED = ("mask_token",)
"""Names that some files hold for pretraining and no feature depends on."""


class TimmTower(nn.Module):
    """A timm model without classifier: images ``[B, 3, H, W]`` to pooled features ``[B, output_dim]``."""

    trunk: Any
    """The timm model."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.output_dim = feature_dim(trunk)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, output_dim]``."""
        return self.trunk(images)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass.

        Raises:
            ConfigError: The model cannot.
        """
        try:
            self.trunk.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"engine.gradient_checkpointing=True: {type(self.trunk).__name__} cannot; set it to False"
            ) from error


def feature_dim(trunk: Any) -> int:
    """Width of a timm model's pooled features (the head's hidden layer, where it has one, included)."""
    return int(getattr(trunk, "head_hidden_size", None) or trunk.num_features)


def resize_input(trunk: Any, image_size: int) -> None:
    """Sets the side of a timm model's input, where the model depends on it."""
    if hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(image_size, image_size))


def build(config: Model) -> tuple[TimmTower, Preprocess]:
    """The tower of ``config.backbone``, random or pretrained, and what its images must look like.

    Raises:
        ConfigError: Neither ``timm``, a file nor None for ``pretrained``.
        WeightsError: A file that does not fit, or a download that failed.
    """
    check_source(config)
    trunk = _bare_trunk(config)
    if config.pretrained == HUB:
        load(trunk, _hub_tensors(config), _source_name(config), optional=_optional(trunk))
    elif config.pretrained:
        tensors = pick(read_tensors(Path(config.pretrained)), PREFIXES)
        load(trunk, tensors, _source_name(config), optional=_optional(trunk))
    return TimmTower(trunk), preprocess(trunk, config.image_size)


def check(config: Model) -> None:
    """Checks source and file as :func:`build` does, on the meta device.

    Raises:
        ConfigError: As :func:`build`.
        WeightsError: As :func:`build`, downloads aside.
    """
    check_source(config)
    if config.pretrained and config.pretrained != HUB:
        tensors = pick(read_tensors(Path(config.pretrained), shapes_only=True), PREFIXES)
        with torch.device("meta"):
            trunk = _bare_trunk(config)
        fit(tensors, trunk.state_dict(), _source_name(config), optional=_optional(trunk))


def check_source(config: Model) -> None:
    """Checks that ``pretrained`` is None, ``timm`` where the hub has weights, or a file.

    Raises:
        ConfigError: It is none of these.
    """
    source, name = config.pretrained, model_name(config)
    if source == HUB and not timm.models.is_model_pretrained(name):
        raise ConfigError(f"model.pretrained=timm: timm has no weights for {name}; give a file or None")
    if source not in (None, HUB) and not Path(str(source)).is_file():
        raise ConfigError(
            f"model.pretrained={source}: no such file, and not a tag of {config.backbone};"
            " a timm backbone takes timm (its own weights), a file or None"
        )


def model_name(config: Model) -> str:
    """timm's own name of the backbone."""
    return config.backbone.removeprefix(PREFIX)


def _source_name(config: Model) -> str:
    return f"model.pretrained={config.pretrained} (model.backbone={config.backbone})"


def _bare_trunk(config: Model) -> nn.Module:
    """The model without classifier, at ``image_size`` where it depends on it; random weights."""
    trunk = timm.create_model(model_name(config), pretrained=False, num_classes=0)
    resize_input(trunk, config.image_size)
    return trunk


def _hub_tensors(config: Model) -> Tensors:
    try:
        return timm.create_model(model_name(config), pretrained=True, num_classes=0).state_dict()
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            f"{_source_name(config)}: timm could not get the weights ({error});"
            " check the network, or give a file"
        ) from error


def _optional(trunk: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's names, which features do not use."""
    return (*classifier_names(trunk), *UNUSED)


def classifier_names(trunk: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of a timm model's classifier."""
    cfg: Any = trunk.pretrained_cfg
    classifier = cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)


def preprocess(trunk: nn.Module, image_size: int) -> Preprocess:
    """What the model's pretrained configuration says of its images."""
    cfg: Any = trunk.pretrained_cfg
    return Preprocess(image_size, _channels(cfg["mean"]), _channels(cfg["std"]), cfg["interpolation"])


def _channels(values: tuple[float, ...]) -> Channels:
    red, green, blue = values
    return (red, green, blue)
