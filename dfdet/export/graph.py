"""A trained detector as a graph is made of it: uint8 crops to scores, nothing else, in float32."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.checkpoints.resume import restore
from dfdet.export.exact_resize import ExactResize
from dfdet.model.detector import FAKE, PARTS, Detector, build_detector
from dfdet.model.preprocess import Preprocess
from dfdet.model.tuning import IN_PROJ, LoraLinear, norm_modules


class Deployed(nn.Module):
    """A whole detector: preprocessing, tower and head. It trains no more, and its weights do not change.

    Args:
        tower: Normalised images ``[N, 3, S, S]`` to features ``[N, D]``; LoRA updates are merged in place.
        head: Features to logits ``[N, 2]``.
        preprocess: What the tower's images must look like.
        pillow: Whether training resized by Pillow.

    Raises:
        ConfigError: A resize that has no graph.
    """

    def __init__(
        self, tower: nn.Module, head: nn.Module, preprocess: Preprocess, *, pillow: bool = False
    ) -> None:
        super().__init__()
        merge_lora(tower)
        self.resize = ExactResize(preprocess, pillow=pillow)
        self.tower, self.head, self.preprocess = tower, head, preprocess
        self.products = torch.float32
        self.traces: dict[torch.dtype, ExportedProgram] = {}
        """What :func:`dfdet.export.program.trace` made of it, by the type of the products."""
        for _, norm in norm_modules(tower):
            norm.register_forward_pre_hook(_in_float32)  # autocast leaves norms of 16 bits on a CPU
        self.requires_grad_(False).eval()

    def computing_in(self, dtype: torch.dtype) -> Deployed:
        """This detector with the tower's matrix products in a type of 16 bits; weights are shared."""
        other = copy.copy(self)
        other.products = dtype
        return other

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of crops.

        Args:
            crops: ``[N, H, W, 3]`` uint8 RGB, whole and square.

        Returns:
            Fake probability ``[N]`` and fake minus real logit ``[N]``, float32.
        """
        images, low = self.resize(crops), self.products != torch.float32
        with torch.autocast(crops.device.type, self.products, enabled=low, cache_enabled=False):
            features = self.tower(images).float()
        logits = self.head(features, None)
        return logits.softmax(dim=1)[:, FAKE], logits[:, FAKE] - logits[:, 1 - FAKE]


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])


def deployed(source: str | Opened, *, pretrained: str | None = None) -> Deployed:
    """The detector of a checkpoint, on the CPU in float32.

    One that was trained with bfloat16 products gets the pretrained weights that these were rounded
    from; of a random tower there are only the rounded ones.

    Args:
        source: As :func:`dfdet.checkpoints.opened.open_checkpoint` takes it, or what it gave; that is
            not changed.
        pretrained: The tower's weights, where they are not any more where training found them.

    Raises:
        WeightsError: As ``open_checkpoint``.
        ConfigError: As ``open_checkpoint``, or a resize that has no graph.
    """
    opened = source if isinstance(source, Opened) else open_checkpoint(source, pretrained=pretrained)
    detector = _full_precision(opened)
    pillow = opened.config.data.resize == "pillow"
    return Deployed(detector.tower, detector.head, detector.preprocess, pillow=pillow)


def _full_precision(opened: Opened) -> Detector:
    if opened.folder is None:
        return copy.deepcopy(opened.detector).cpu()  # published: float32, and without LoRA
    detector = build_detector(opened.config.replace({"engine.precision": "fp32"}))
    restore(detector, opened.folder)
    return detector


@torch.no_grad()
def merge_lora(tower: nn.Module) -> None:
    """Adds every low-rank update to the weight that it is of, in place; names are then a plain tower's.

    Not for a deep copy: its parametrized modules share their class with the original's, which would break.
    """
    for module in list(tower.modules()):
        if parametrize.is_parametrized(module, IN_PROJ):
            parametrize.remove_parametrizations(module, IN_PROJ, leave_parametrized=True)
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, _merged(child))


def _merged(lora: LoraLinear) -> nn.Linear:
    linear = nn.Linear(lora.in_features, lora.out_features, bias=lora.bias is not None, device="meta")
    weight = lora.weight.float() + lora.lora_scale * (lora.lora_up @ lora.lora_down)
    linear.weight, linear.bias = nn.Parameter(weight), lora.bias
    return linear


def whole_state(model: Deployed) -> dict[str, Tensor]:
    """Tensors of tower and head, sorted by the names that a detector without LoRA gives them.

    Floating-point ones in float32, all contiguous and each with a memory of its own.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    return {
        name: (state[name].float() if state[name].is_floating_point() else state[name]).clone(
            memory_format=torch.contiguous_format
        )
        for name in sorted(state)
    }
