"""Lightning checkpoints: DD's, whose tower stands in peft's LN-tuning wrapper, and GenD's, without one.

In the wrapper each LayerNorm is there twice: ``.base_layer.*`` as it was before training, and
``.ln_tuning_layers.default.*``, which computes.
"""

from __future__ import annotations

from dfdet.errors import WeightsError
from dfdet.model.weights import Tensors
from dfdet.published.contents import (
    DFB_CROP,
    GEND_CROP,
    TOWER,
    Contents,
    backbone_of,
    head_of,
    split,
)
from dfdet.published.raw import Raw
from dfdet.recipes import gend, paper

WRAPPER = "base_model.model."
BASE = ".base_layer."
LIVE = ".ln_tuning_layers.default."


def contents(raw: Raw) -> Contents:
    """The parts of such a checkpoint (arXiv 2503.19683; 2508.06248).

    Raises:
        WeightsError: Tensors of neither tower nor head, two of one name, or an unknown head.
    """
    tower, head = split(raw)
    normalize, notes = head_of(raw)
    if raw.foreign:
        notes = (*notes, f"objects of these classes were not loaded: {', '.join(raw.foreign)}")
    wrapped = any(name.startswith(WRAPPER) for name in tower)
    live, unused = _live(tower, raw.name) if wrapped else (tower, ())
    return Contents(
        f"{'DD' if wrapped else 'GenD'}'s Lightning checkpoint",
        paper if wrapped else gend,
        DFB_CROP if wrapped else GEND_CROP,
        live,
        head,
        backbone_of(raw),
        normalize,
        raw.values,
        unused,
        notes,
    )


def _live(tower: Tensors, source: str) -> tuple[Tensors, tuple[str, ...]]:
    """The tower without its wrapper, and the file's names of the norms that no longer compute."""
    live: Tensors = {}
    unused: list[str] = []
    for name, tensor in tower.items():
        if BASE in name:
            unused.append(TOWER + name)
            continue
        target = name.removeprefix(WRAPPER).replace(LIVE, ".")
        if target in live:
            raise WeightsError(f"{source}: holds {target} twice, once as {TOWER + name}; get the file again")
        live[target] = tensor
    return live, tuple(unused)
