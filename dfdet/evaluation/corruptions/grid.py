"""The corruptions of the robustness grid, their names and their curves.

The levels are those of GenD's robustness runs (arXiv 2508.06248). As committed, its public code blurs
nothing (the probability stays 0), skips JPEG at quality 100, and cuts noisy values off to whole levels;
here every blur is done, quality 100 is a real compression, and noisy values are rounded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dfdet.errors import ConfigError

Kind = Literal["jpeg", "blur", "resize", "noise"]

QUALITIES = (100, 80, 60, 40, 20, 10)
BLURS = ((0, 0.0), (5, 0.5), (7, 1.0), (11, 1.5), (13, 2.0), (19, 3.0))
"""Kernel and sigma (pixels)."""
SIDES_PX = (224, 112, 64)
FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Pillow's names."""
NOISES = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2)
"""Sigma, of the range 0 to 1."""

_AXES = {"jpeg": "quality", "blur": "sigma (pixels)", "resize": "side (pixels)", "noise": "sigma (of 1)"}


@dataclass(frozen=True)
class Corruption:
    """One kind at one level; fields of other kinds stay empty."""

    kind: Kind
    level: float
    """JPEG quality (1 to 100), side after the resize (pixels), sigma of the blur (pixels) or of the noise
    (of the range 0 to 1)."""
    kernel_px: int = 0
    """Blur: side of its kernel, odd (pixels)."""
    filter: str = ""
    """Resize: one of ``FILTERS``."""

    @property
    def name(self) -> str:
        """As in names of metrics: ``jpeg-40``, ``blur-7-1``, ``resize-112-lanczos``, ``noise-0.05``."""
        kernel = f"{self.kernel_px}-" if self.kind == "blur" else ""
        filter_ = f"-{self.filter}" if self.kind == "resize" else ""
        return f"{self.kind}-{kernel}{self.level:g}{filter_}"

    @property
    def curve(self) -> str:
        """Name of its curve: the kind, of a resize with the filter (``resize-lanczos``)."""
        return f"{self.kind}-{self.filter}" if self.kind == "resize" else self.kind

    @property
    def clean(self) -> bool:
        """Whether nothing is done: the pixels are those of the plain evaluation."""
        return self.kind in ("blur", "noise") and self.level == 0


@dataclass(frozen=True)
class Curve:
    """Corruptions of one kind (and filter), from the mildest to the strongest."""

    name: str
    axis: str
    """What the levels are, with their unit."""
    corruptions: tuple[Corruption, ...]

    @property
    def levels(self) -> tuple[float, ...]:
        """Place of each on the axis: falling for quality and side, rising for sigma."""
        return tuple(corruption.level for corruption in self.corruptions)


GRID: tuple[Corruption, ...] = (
    *(Corruption("jpeg", quality) for quality in QUALITIES),
    *(Corruption("blur", sigma, kernel_px=kernel) for kernel, sigma in BLURS),
    *(Corruption("resize", side, filter=filter_) for filter_ in FILTERS for side in SIDES_PX),
    *(Corruption("noise", sigma) for sigma in NOISES),
)
"""All, curve by curve, each from its mildest level to its strongest."""

_BY_NAME = {corruption.name: corruption for corruption in GRID}


def parse(name: str) -> Corruption:
    """The corruption of the grid with this name.

    Raises:
        ConfigError: There is none; the nearest names are listed.
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name.lower(), _BY_NAME, n=3, cutoff=0.5)
        hint = (
            f"the nearest are {', '.join(near)}" if near else f"names are as {', '.join(list(_BY_NAME)[::7])}"
        )
        raise ConfigError(f"{name!r}: no such corruption; {hint}")
    return _BY_NAME[name]


def curves(corruptions: Iterable[Corruption] = GRID) -> tuple[Curve, ...]:
    """The curves to draw of some corruptions, each in the order of the grid; a resize has one a filter."""
    asked = set(corruptions)
    found: dict[str, list[Corruption]] = {}
    for corruption in GRID:
        if corruption in asked:
            found.setdefault(corruption.curve, []).append(corruption)
    return tuple(Curve(name, _AXES[rows[0].kind], tuple(rows)) for name, rows in found.items())
