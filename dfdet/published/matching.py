"""Key by key: what a file has, what a module takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dfdet.errors import WeightsError
from dfdet.model.weights import SHOWN, Tensors


def require_match(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Checks that names and shapes are the same.

    Args:
        tensors: A file's, under the module's names.
        expected: The module's state dict (any device).
        what: Source and part, for the error.

    Raises:
        WeightsError: Names missing or left over, or other shapes: three of each, and how many.
    """
    shapes = [
        f"{k} {list(v.shape)} instead of {list(expected[k].shape)}"
        for k, v in tensors.items()
        if k in expected and v.shape != expected[k].shape
    ]
    kinds = {
        "missing": [k for k in expected if k not in tensors],
        "left over": [k for k in tensors if k not in expected],
        "of other shape": shapes,
    }
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise WeightsError(
            f"{what}: tensors do not match, by our names: {'; '.join(problems)}; the file is damaged, or of a"
            " model that is not known here"
        )


def fill(module: nn.Module, tensors: Tensors, what: str) -> None:
    """Copies tensors of exactly the module's names and shapes into it, in its own precision.

    Raises:
        WeightsError: As :func:`require_match`.
    """
    require_match(tensors, module.state_dict(), what)
    module.load_state_dict(tensors)
