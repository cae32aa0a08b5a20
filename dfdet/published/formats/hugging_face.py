"""GenD's weights on Hugging Face: safetensors, with backbone and head in the ``config.json`` beside."""

from __future__ import annotations

from dfdet.published.contents import GEND_CROP, Contents, backbone_of, head_of, split
from dfdet.published.raw import Raw
from dfdet.recipes import gend


def contents(raw: Raw) -> Contents:
    """The parts of such a file (arXiv 2508.06248).

    Raises:
        WeightsError: Tensors of neither tower nor head, or an unknown head.
    """
    tower, head = split(raw)
    normalize, notes = head_of(raw)
    return Contents(
        "GenD's Hugging Face weights",
        gend,
        GEND_CROP,
        tower,
        head,
        backbone_of(raw),
        normalize,
        values={},
        unused=(),
        notes=notes,
    )
