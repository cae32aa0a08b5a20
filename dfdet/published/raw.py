"""A published file as it is: tensors by their own names, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dfdet.errors import WeightsError
from dfdet.model.weights import Tensors
from dfdet.published import pickles
from dfdet.published.source import locate

STATE_DICT = "state_dict"
HYPER_PARAMETERS = "hyper_parameters"


@dataclass(frozen=True)
class Raw:
    """What a source holds."""

    name: str
    """As the user named it, for errors."""
    tensors: Tensors
    """By the file's own names."""
    values: Mapping[str, Any]
    """Hyper-parameters, or the ``config.json`` beside the file; empty where there are none."""
    lightning: bool
    """Whether it is a checkpoint of Lightning."""
    foreign: tuple[str, ...]
    """Classes whose objects were not loaded."""


def read(source: str, *, shapes_only: bool = False) -> Raw:
    """Reads a source; downloads an id.

    Args:
        source: A file, a folder, or ``hf:OWNER/NAME[@REVISION]``.
        shapes_only: Tensors of the meta device, without the bytes.

    Raises:
        ConfigError: No such file.
        WeightsError: Damaged, of another kind, or not to be had.
    """
    files = locate(source)
    if files.weights.suffix == ".safetensors":
        tensors = _safetensors(files.weights, shapes_only=shapes_only)
        return Raw(source, tensors, files.config, lightning=False, foreign=())
    loaded, foreign = pickles.read(files.weights, shapes_only=shapes_only)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{source}: holds {type(loaded).__name__}, not weights; {_REMEDY}")
    values = loaded.get(HYPER_PARAMETERS)
    values = values if isinstance(values, Mapping) else files.config
    inner = loaded.get(STATE_DICT)
    state = inner if isinstance(inner, Mapping) else loaded
    return Raw(source, _only_tensors(state, source), values, inner is state, foreign)


_REMEDY = "give a checkpoint or a safetensors file"


def _only_tensors(state: Mapping[object, object], source: str) -> Tensors:
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        what = f"{len(others)} entries that are no tensors ({', '.join(others[:3])})" if others else "nothing"
        raise WeightsError(f"{source}: holds {what}; {_REMEDY}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _safetensors(path: Path, *, shapes_only: bool) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if shapes_only:
                return {k: torch.empty(file.get_slice(k).get_shape(), device="meta") for k in names}
            return {k: file.get_tensor(k) for k in names}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: cannot be read as safetensors ({error}); it is damaged or of another kind: get it again"
        ) from error
