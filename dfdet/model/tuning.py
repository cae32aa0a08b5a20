"""Which parameters of a tower train: none, its norms, low-rank updates, or all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dfdet.config import Tuning
from dfdet.errors import ConfigError

IN_PROJ = "in_proj_weight"
"""Joint query, key and value weight of open_clip's and torch's attention, which is no module."""
READS_WEIGHTS = frozenset({"open_clip.modified_resnet.AttentionPool2d", "dfdet.model.tiny.DctStem"})
"""Types that read the weights of their linears and never call them: an update there would be dead."""


@dataclass(frozen=True)
class TuningReport:
    """What :func:`apply_tuning` made trainable."""

    norm_modules: int
    """Norms with parameters in the tower, whatever the mode."""
    parameters: int
    """Trainable numbers in the tower."""
    names: tuple[str, ...]
    """Names of the trainable parameters, in the tower's order."""


def apply_tuning(tower: nn.Module, config: Tuning, *, seed: int = 0) -> TuningReport:
    """Freezes the tower but for what ``config.mode`` selects; ``lora`` adds its parameters.

    Norms are chosen by module type (arXiv 2503.19683 trains all LayerNorms of a CLIP ViT: 50 modules
    and 102,400 parameters at L/14): names would miss batch norms and those of downsampling layers.

    Args:
        tower: Changed in place.
        config: Mode, and rank and alpha of LoRA.
        seed: LoRA's down-projections depend on it only.

    Raises:
        ConfigError: The mode selects nothing in this tower.
    """
    tower.requires_grad_(False)
    norms = list(norm_modules(tower))
    if config.mode == "ln":
        _require(norms, "has no normalisation layer with parameters; set --tuning.mode full, lora or probe")
        for _, norm in norms:
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(True)
    elif config.mode == "full":
        tower.requires_grad_(True)
    elif config.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            added = add_lora(tower, config.lora_rank, config.lora_alpha)
        _require(added, "has no linear layer for LoRA; set --tuning.mode ln, full or probe")
    trained = {name: p for name, p in tower.named_parameters() if p.requires_grad}
    return TuningReport(len(norms), sum(p.numel() for p in trained.values()), tuple(trained))


def _require(selected: list[object] | list[tuple[str, nn.Module]], problem: str) -> None:
    if not selected:
        raise ConfigError(f"tuning.mode: this tower {problem}")


def norm_modules(tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose type name contains "norm" and that own parameters.

    Not only leaves: timm's BatchNormAct2d holds its activation.
    """
    for name, module in tower.named_modules():
        owned = next(module.parameters(recurse=False), None)
        if "norm" in type(module).__name__.lower() and owned is not None:
            yield name, module


class LoraLinear(nn.Linear):
    """A frozen linear layer plus a low-rank update: ``x W^T + b + alpha / r (x A^T) B^T``.

    arXiv 2106.09685. A is ``lora_down [r, in]``, B is ``lora_up [out, r]``, zero at first, so that
    training starts at the pretrained function. Weight and bias keep their names.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_scale = alpha / rank
        self.lora_down, self.lora_up = _factors(linear.weight, rank)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        update = F.linear(F.linear(x, self.lora_down), self.lora_up)
        return super().forward(x) + self.lora_scale * update


class LoraDelta(nn.Module):
    """The same update as a parametrization, of a weight that is used without a module of its own.

    The sum is float32; autocast then rounds it once, as it does any weight.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.lora_scale = alpha / rank
        self.lora_down, self.lora_up = _factors(weight, rank)

    def forward(self, weight: Tensor) -> Tensor:
        """``W + alpha / r B A``, float32."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight.float() + self.lora_scale * (self.lora_up @ self.lora_down)


def _factors(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    rows, columns = weight.shape
    down = torch.empty(rank, columns, device=weight.device)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return nn.Parameter(down), nn.Parameter(torch.zeros(rows, rank, device=weight.device))


def reads_weights(module: nn.Module) -> bool:
    """Whether a module uses its linears' weights without calling the linears."""
    return f"{type(module).__module__}.{type(module).__qualname__}" in READS_WEIGHTS


def add_lora(tower: nn.Module, rank: int, alpha: float) -> list[object]:
    """Adds updates to all plain linear layers and joint attention weights; returns what was changed."""
    changed: list[object] = []
    for module in list(tower.modules()):
        if reads_weights(module):
            continue
        if isinstance(getattr(module, IN_PROJ, None), nn.Parameter):
            weight = getattr(module, IN_PROJ)
            parametrize.register_parametrization(module, IN_PROJ, LoraDelta(weight, rank, alpha))
            changed.append(module)
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:  # a subclass may use its weight in another way
                setattr(module, name, LoraLinear(child, rank, alpha))
                changed.append(child)
    return changed
