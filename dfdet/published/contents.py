"""What every published detector comes down to, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dfdet.config import Config
from dfdet.errors import WeightsError
from dfdet.model.weights import SHOWN, Tensors
from dfdet.published.pickles import plain
from dfdet.published.raw import Raw
from dfdet.schema import CropRecipe

TOWER = "feature_extractor."
HEAD = "model."
NORMALISED = "LinearNorm"
HEADS = {NORMALISED: True, "linear": False}
"""Published names of heads, and whether features are L2-normalised before them."""

DFB_CROP = CropRecipe(template="dfb", scale=1.3, size_px=256, selection="largest")
"""DD's faces: DeepfakeBench's preprocessing; its detector's version and weights are not told."""
GEND_CROP = CropRecipe(template="gend", scale=1.3, detector="retinaface", selection="mask")
"""GenD's faces, each at its own size; its detector's version and weights are not told."""


@dataclass(frozen=True)
class Contents:
    """The parts of a published detector."""

    kind: str
    """Format, in words."""
    recipe: Callable[[], Config]
    """Ours that stands in its place."""
    crop: CropRecipe
    """How its training faces were cut."""
    tower: Tensors
    """By their names inside the feature extractor."""
    head: Tensors
    """Under the head's own names."""
    backbone: str | None
    """As the authors name it; None where the file does not tell."""
    normalize: bool
    """Whether features are L2-normalised before the head."""
    values: Mapping[str, Any]
    """The authors' training values; may be empty."""
    unused: tuple[str, ...]
    """Names in the file that nothing depends on."""
    notes: tuple[str, ...]
    """What had to be assumed."""


def is_detector(raw: Raw) -> bool:
    """Whether the names are those of DD's and GenD's detectors."""
    return any(name.startswith(TOWER) for name in raw.tensors)


def split(raw: Raw) -> tuple[Tensors, Tensors]:
    """Tower and head by their own names.

    Raises:
        WeightsError: Tensors that belong to neither.
    """
    tower = {k.removeprefix(TOWER): v for k, v in raw.tensors.items() if k.startswith(TOWER)}
    head = {k.removeprefix(HEAD): v for k, v in raw.tensors.items() if k.startswith(HEAD)}
    others = [k for k in raw.tensors if not k.startswith((TOWER, HEAD))]
    if others:
        raise WeightsError(
            f"{raw.name}: {len(others)} tensors are neither the feature extractor's nor the head's"
            f" ({', '.join(others[:SHOWN])}); the detector is another one than {TOWER}* with {HEAD}linear"
        )
    return tower, head


def backbone_of(raw: Raw) -> str | None:
    """The backbone's published name, if the file tells it."""
    name = plain(raw.values.get("backbone"))
    return name if isinstance(name, str) else None


def head_of(raw: Raw) -> tuple[bool, tuple[str, ...]]:
    """Whether the head takes L2-normalised features, and what had to be assumed.

    Raises:
        WeightsError: A head that is not known.
    """
    name = plain(raw.values.get("head"))
    if name is None:
        return True, ("its head's kind is not told: features are L2-normalised, as in all released ones",)
    if name not in HEADS:
        raise WeightsError(f"{raw.name}: its head {name!r} is not known; known are {', '.join(HEADS)}")
    return HEADS[str(name)], ()
