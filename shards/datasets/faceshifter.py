"""FaceShifter fakes of the FaceForensics++ videos (arXiv 1912.13457).

Layout: ``manipulated_sequences/FaceShifter/{raw,c23,c40}/videos/T_S.mp4`` beside FF++'s
    ``original_sequences``; there are no masks.
Label: by folder.
Group of a fake: its target T, exact; the groups are those of FF++.
Split: FF++'s lists of pairs.
Unknown: the person, as in FF++.
"""

from __future__ import annotations

from pathlib import Path

from shards.datasets.ffpp import find_methods
from shards.source import Listing, ListOptions


def find(root: Path, options: ListOptions) -> Listing:
    """Lists the FaceShifter fakes and, where they lie in the same root, FF++'s reals."""
    return find_methods("faceshifter", {"FSh": "FaceShifter"}, root, options)
