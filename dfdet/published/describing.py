"""What a published file is, found on shapes alone: no weights are built."""

from __future__ import annotations

import math

import torch

from dfdet.model.weights import Tensors
from dfdet.published import raw
from dfdet.published.contents import Contents
from dfdet.published.formats import headless, recognise
from dfdet.published.loading import build_bare, config_of, unused_of
from dfdet.published.matching import require_match
from dfdet.published.towers import Mapped, map_tower
from dfdet.schema import CropRecipe


def describe(source: str) -> list[str]:
    """Lines on a source: kind, backbone, head, parameters, crop, and what of it is not used.

    Raises:
        ConfigError: No such file.
        WeightsError: Damaged or of an unknown kind, or its tensors do not match.
    """
    read = raw.read(source, shapes_only=True)
    kind = headless.kind(read)
    if kind is not None:
        return [f"kind        {kind}: a tower without a head", f"use         {headless.USE}"]
    contents = recognise(read)
    mapped = map_tower(contents, source)
    _check(contents, mapped, source)
    return _lines(contents, mapped)


def _check(contents: Contents, mapped: Mapped, source: str) -> None:
    config, _ = config_of(contents, mapped)
    with torch.device("meta"):
        tower, head, _ = build_bare(config, mapped)
    require_match(mapped.tensors, tower.state_dict(), f"{source} (tower {mapped.backbone})")
    require_match(contents.head, head.state_dict(), f"{source} (head)")


def _lines(contents: Contents, mapped: Mapped) -> list[str]:
    config, doubts = config_of(contents, mapped)
    told = contents.backbone or "not told"
    return [
        f"kind        {contents.kind}",
        f"backbone    {mapped.backbone} (published as: {told}), input {mapped.image_size} px",
        f"head        linear on {'L2-normalised' if contents.normalize else 'plain'} features",
        f"parameters  {_numbers(mapped.tensors):,} tower, {_numbers(contents.head):,} head",
        f"crop        {_crop(contents.crop)}",
        f"recipe      {config.run.recipe}",
        *(f"not used    {names}" for names in unused_of(contents, mapped)),
        *(f"note        {note}" for note in (*contents.notes, *mapped.notes, *doubts)),
    ]


def _numbers(tensors: Tensors) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _crop(crop: CropRecipe) -> str:
    fields = crop.model_dump()
    return ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in fields.items())
