"""The detector: tower, head, and the precision they compute in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from dfdet.config import Config
from dfdet.data.transforms import ToInput
from dfdet.errors import ConfigError
from dfdet.model.backbone import Preprocess, build_tower
from dfdet.model.compiled import compile_blocks
from dfdet.model.heads import build_head
from dfdet.model.temporal import TemporalHead, build_temporal
from dfdet.model.tuning import IN_PROJ, LoraLinear, TuningReport, apply_tuning, reads_weights
from dfdet.model.weights import require_fit

Precision = Literal["bf16", "fp32"]
FAKE = 1
PARTS = ("tower.", "head.", "temporal.")

AUTOCAST_MODULES = frozenset({nn.Linear, LoraLinear, nn.Conv2d, NonDynamicallyQuantizableLinear})
"""Modules whose weight autocast rounds to bfloat16 at every use: storing it so changes no bit."""


class Detector(nn.Module):
    """A tower and a head on its features, those of frames and, with a temporal head, those of clips.

    Parameters train in float32. With ``precision`` bf16 the tower's matrix products are in bfloat16
    (autocast), norms and the residual stream in float32, features always leave in float32, and the
    heads are float32 throughout.
    """

    def __init__(
        self,
        tower: nn.Module,
        head: nn.Module,
        preprocess: Preprocess,
        precision: Precision,
        tuning: TuningReport,
        temporal: TemporalHead | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.temporal = temporal
        self.preprocess = preprocess
        self.precision = precision
        self.tuning = tuning
        self.to_input = ToInput(
            preprocess.image_size, preprocess.mean, preprocess.std, preprocess.interpolation
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` float32 (of :attr:`to_input`) to features ``[B, D]`` float32."""
        # No weight cache: one filled under no_grad (gradient caching's first pass) would lose gradients
        # in the second, and frozen weights are stored in bfloat16 anyway.
        bf16 = self.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            return self.tower(images).float()

    def fake_probability(self, features: Tensor) -> Tensor:
        """Softmax probability of fake, ``[N]`` float32, of features ``[N, D]``; without margins."""
        return self.head(features, None).softmax(dim=1)[:, FAKE]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by name: ``tower...``, ``head...`` and ``temporal...``."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def frozen(self) -> dict[str, Tensor]:
        """What does not train, by name: frozen parameters and persistent buffers."""
        trained = self.trainable()
        state = self.state_dict(keep_vars=True)
        return {k: v.detach() for k, v in state.items() if k not in trained and k.startswith(PARTS)}

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets all of :meth:`trainable` from tensors of the same names.

        Raises:
            WeightsError: A name is missing or unexpected, or a shape is another.
        """
        _copy(self.trainable(), tensors, "the checkpoint's trained tensors")

    def load_frozen(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets all of :meth:`frozen` from tensors of the same names.

        Raises:
            WeightsError: A name is missing or unexpected, or a shape is another.
        """
        _copy(self.frozen(), tensors, "the checkpoint's frozen tensors")


def _copy(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    require_fit(tensors, targets, source)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def build_detector(config: Config, *, device: torch.device | str = "cpu") -> Detector:
    """The detector of a config, deterministic in ``run.seed``: tower, tuning, heads, precision, device.

    Raises:
        ConfigError: Unknown backbone or tag, a selector that matches nothing, or a tower that cannot
            do gradient checkpointing or be compiled.
        WeightsError: A pretrained file that does not fit.
    """
    tower, preprocess = build_tower(config.model, seed=config.run.seed)
    tuning = apply_tuning(tower, config.tuning, seed=config.run.seed)
    dim = tower.output_dim
    assert isinstance(dim, int)
    head = build_head(config.model, dim, seed=config.run.seed)
    frames = config.data.clip_frames
    temporal = build_temporal(dim, frames, seed=config.run.seed) if config.model.temporal else None
    if config.engine.gradient_checkpointing:
        checkpoint_gradients(tower)
    if config.engine.precision == "bf16":
        store_frozen_in_bf16(tower)
    if config.engine.compile:
        compile_blocks(tower)
    detector = Detector(tower, head, preprocess, config.engine.precision, tuning, temporal)
    return detector.to(device).train()


def checkpoint_gradients(tower: nn.Module) -> None:
    """Makes the tower recompute its activations in the backward pass.

    Raises:
        ConfigError: The tower cannot.
    """
    switch = getattr(tower, "set_grad_checkpointing", None)
    if switch is None:
        raise ConfigError("engine.gradient_checkpointing=True: this tower cannot; set it to False")
    switch(True)


def store_frozen_in_bf16(tower: nn.Module) -> None:
    """Stores the frozen weights of matrix products in bfloat16: half the memory and no casts a step.

    Embeddings, tokens, norms and biases stay float32, as do weights that other code than a plain
    linear or convolution reads.
    """
    read = {id(child) for module in tower.modules() if reads_weights(module) for child in module.children()}
    for module in tower.modules():
        for parameter in _autocast_weights(module):
            if not parameter.requires_grad and id(module) not in read:
                parameter.data = parameter.data.to(torch.bfloat16)


def _autocast_weights(module: nn.Module) -> list[nn.Parameter]:
    candidates: list[object] = []
    if type(module) in AUTOCAST_MODULES:
        candidates.append(module.weight)
    if parametrize.is_parametrized(module, IN_PROJ):
        candidates.append(module.parametrizations[IN_PROJ].original)  # type: ignore[union-attr,index]
    else:
        candidates.append(getattr(module, IN_PROJ, None))
    return [candidate for candidate in candidates if isinstance(candidate, nn.Parameter)]


def frozen_sha256(detector: Detector) -> str:
    """:func:`tensors_sha256` of what does not train."""
    return tensors_sha256(detector.frozen())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
