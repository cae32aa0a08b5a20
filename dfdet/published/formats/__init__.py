"""The formats that are known: each a module that takes a file's names apart."""

from __future__ import annotations

from dfdet.errors import WeightsError
from dfdet.published.contents import Contents, is_detector
from dfdet.published.formats import headless, hugging_face, lightning
from dfdet.published.raw import Raw

__all__ = ["recognise"]

KNOWN = "DD's and GenD's Lightning checkpoints and GenD's Hugging Face weights (config.json, safetensors)"


def recognise(raw: Raw) -> Contents:
    """The parts of a detector.

    Raises:
        WeightsError: A tower without a head, or an unknown format.
    """
    if is_detector(raw):
        return lightning.contents(raw) if raw.lightning else hugging_face.contents(raw)
    kind = headless.kind(raw)
    if kind is not None:
        raise WeightsError(f"{raw.name}: {kind}: a tower without a head, no detector; {headless.USE}")
    names = ", ".join(list(raw.tensors)[:3])
    raise WeightsError(
        f"{raw.name}: no known kind of detector ({len(raw.tensors)} tensors: {names}, ...); known are {KNOWN}"
    )
