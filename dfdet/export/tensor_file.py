"""Safetensors files whose bytes depend on their contents alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes contiguous tensors, and text about them.

    The library writes that text in a random order, so here it is put in afterwards.

    Raises:
        OSError: The disk is full or not writable.
    """
    data = save(dict(tensors))
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(about), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + length :])
