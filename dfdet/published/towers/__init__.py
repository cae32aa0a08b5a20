"""The published towers as ours: each family a module that maps names and knows its models."""

from __future__ import annotations

from collections.abc import Callable

from dfdet.errors import WeightsError
from dfdet.published.contents import Contents
from dfdet.published.towers import clip, dinov3, perception
from dfdet.published.towers.mapped import Mapped

__all__ = ["Mapped", "map_tower"]


def map_tower(contents: Contents, source: str) -> Mapped:
    """The tower under our names, and which of our backbones it is.

    Raises:
        WeightsError: A tower of no family or size that is known.
    """
    for family in (clip, perception, dinov3):
        if family.recognises(contents.tower):
            return _mapped(family.mapped, contents, source)
    names = ", ".join(list(contents.tower)[:3])
    raise WeightsError(
        f"{source}: its tower {contents.backbone or ''} is none of CLIP, Perception Encoder or DINOv3"
        f" (tensors {names}, ...); these are the ones that are read"
    )


def _mapped(family: Callable[[Contents, str], Mapped], contents: Contents, source: str) -> Mapped:
    try:
        return family(contents, source)
    except RuntimeError as error:  # of torch: queries, keys and values that cannot be joined
        raise WeightsError(
            f"{source}: tensors of its tower do not fit one another ({error}); get the file again"
        ) from error
