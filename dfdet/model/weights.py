"""Pretrained files: read without running code, mapped to a tower's keys, compared, loaded strictly."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.errors import WeightsError

Tensors = dict[str, Tensor]
SHOWN = 3
MOST_PREFIX_TOKENS = 8
POSITIONS = ("pos_embed", "positional_embedding")
CONTAINERS = ("state_dict", "model", "model_state_dict")


def read_tensors(path: Path, *, shapes_only: bool = False) -> Tensors:
    """All tensors of a safetensors file or of a weights-only torch file (a state dict).

    Args:
        path: The file.
        shapes_only: Give tensors of the meta device: names and shapes without the bytes.

    Raises:
        WeightsError: Missing, unreadable, or a file that holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"model.pretrained={path}: no such file; give an existing file or None")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, shapes_only=shapes_only)
        loaded = torch.load(path, map_location="meta" if shapes_only else "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"model.pretrained={path}: cannot be read as plain tensors ({reason}); pickled objects and"
            " TorchScript are refused: give a safetensors file or a saved state dict"
        ) from error
    return _state_dict(loaded, path)


def _read_safetensors(path: Path, *, shapes_only: bool) -> Tensors:
    with safe_open(path, framework="pt") as file:
        if shapes_only:
            return {k: torch.empty(file.get_slice(k).get_shape(), device="meta") for k in file.keys()}  # noqa: SIM118
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def _state_dict(loaded: object, path: Path) -> Tensors:
    for name in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"model.pretrained={path}: holds {type(loaded).__name__}, not a state dict")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def pick(tensors: Tensors, prefixes: Iterable[str]) -> Tensors:
    """The tensors under the first of ``prefixes`` that occurs, without it; all where none occurs."""
    for prefix in prefixes:
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            return found
    return tensors


_HF_NAMES = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)


def is_hugging_face(tensors: Tensors) -> bool:
    """Whether these are the names of Hugging Face's CLIP vision model."""
    return any(name.endswith("embeddings.patch_embedding.weight") for name in tensors)


def from_hugging_face(tensors: Tensors) -> Tensors:
    """Hugging Face's CLIP vision names as open_clip's; q, k, v are joined in that order."""
    source = pick(tensors, ("vision_model.",))
    source = {k: v for k, v in source.items() if k.startswith(("embeddings.", "pre_", "post_", "encoder."))}
    source = {k: v for k, v in source.items() if not k.endswith("position_ids")}
    mapped = {_renamed(name): value for name, value in source.items() if not _QKV.match(name)}
    for name in source:
        match = _QKV.match(name)
        if match and match["which"] == "q":
            parts = [source.get(name.replace("q_proj", f"{which}_proj")) for which in "qkv"]
            if all(part is not None for part in parts):
                target = f"transformer.resblocks.{match['layer']}.attn.in_proj_{match['leaf']}"
                mapped[target] = torch.cat([part for part in parts if part is not None])
    return mapped


_QKV = re.compile(
    r"^encoder\.layers\.(?P<layer>\d+)\.self_attn\.(?P<which>[qkv])_proj\.(?P<leaf>weight|bias)$"
)


def _renamed(name: str) -> str:
    for pattern, replacement in _HF_NAMES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name


def fit(
    tensors: Tensors, expected: Mapping[str, Tensor], source: str, *, optional: Iterable[str] = ()
) -> Tensors:
    """The tensors that a module with ``expected`` keys takes, position embeddings resized to its grid.

    Args:
        tensors: What the source holds, under the module's own names.
        expected: The module's state dict (any device).
        source: What to call the source in an error.
        optional: Prefixes of names that may be missing and, where unexpected, are left out
            (classifiers and projections, which no feature depends on).

    Raises:
        WeightsError: Names missing or unexpected, or other shapes: three of each, and how many.
    """
    resized = {
        k: resize_positions(v, expected[k]) if k in expected and k.endswith(POSITIONS) else v
        for k, v in tensors.items()
    }
    require_fit(resized, expected, source, optional=optional)
    return {k: v for k, v in resized.items() if k in expected and v.shape == expected[k].shape}


def require_fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: str,
    *,
    optional: Iterable[str] = (),
) -> None:
    """Checks names and shapes.

    Raises:
        WeightsError: Names missing or unexpected, or other shapes: three of each, and how many.
    """
    skip = tuple(optional)
    missing = [k for k in expected if k not in tensors and not k.startswith(skip)]
    unexpected = [k for k in tensors if k not in expected and not k.startswith(skip)]
    shapes = [
        f"{k} {list(v.shape)} instead of {list(expected[k].shape)}"
        for k, v in tensors.items()
        if k in expected and v.shape != expected[k].shape and not k.startswith(skip)
    ]
    problems = [_some("missing", missing), _some("unexpected", unexpected), _some("of other shape", shapes)]
    if any(problems):
        raise WeightsError(
            f"{source}: does not fit the model: {'; '.join(p for p in problems if p)};"
            " give weights of this model, or set --model.backbone to the one they are of"
        )


def _some(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {kind} ({shown})" if names else ""


def load(module: nn.Module, tensors: Tensors, source: str, *, optional: Iterable[str] = ()) -> None:
    """Loads ``tensors`` strictly, in float32; see :func:`fit`."""
    fitting = fit(tensors, module.state_dict(), source, optional=optional)
    module.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in fitting.items()}, strict=False
    )


def resize_positions(given: Tensor, wanted: Tensor) -> Tensor:
    """A position embedding ``[(1,) tokens, D]`` on another square grid; anything else as it is.

    Bicubic without antialiasing, as DINOv2 and Hugging Face do: timm's antialiased resize changes
    DINOv2's features (cosine .9999). Class and register tokens ahead of the grid are kept.
    """
    prefix = _prefix_tokens(given, wanted)
    if prefix is None:
        return given
    old, new = (math.isqrt(x.shape[-2] - prefix) for x in (given, wanted))
    rows = given.reshape(given.shape[-2:]).float()
    grid = rows[prefix:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([rows[:prefix], grid.reshape(-1, new * new).T]).reshape(wanted.shape)


def _prefix_tokens(given: Tensor, wanted: Tensor) -> int | None:
    """Tokens ahead of the grid, if both are position embeddings of square grids of other sizes."""
    same_kind = given.ndim == wanted.ndim and given.ndim in (2, 3) and given.shape[-1] == wanted.shape[-1]
    if not same_kind or given.shape == wanted.shape or (given.ndim == 3 and given.shape[0] != 1):
        return None
    counts = (given.shape[-2], wanted.shape[-2])
    squares = (p for p in range(MOST_PREFIX_TOKENS + 1) if all(_is_square(count - p) for count in counts))
    return next(squares, None)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
