"""Published results to set beside one's own: video-level AUROC of detectors trained on FaceForensics++ c23.

Figures of other papers are for orientation: faces, frames and videos of a set of the same name may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dfdet.schema import split_recompression

DD, GEND = "arXiv 2503.19683", "arXiv 2508.06248v1"


@dataclass(frozen=True)
class Published:
    """A row of a paper's table."""

    method: str
    source: str
    auroc: dict[str, float]
    """Video-level AUROC (%) by the key of the test set, as in ``TEST_SETS``."""


TEST_SETS = {
    "cdfv2": "CDFv2",
    "dfd": "DFD",
    "dfdc": "DFDC",
    "ffiw": "FFIW",
    "dsv1": "DSv1",
}
"""Names that the papers give the test sets."""
_PREFIXES = {
    "cdfv2": ("cdfv2", "cdf-v2", "celeb-df-v2"),
    "dfd": ("dfd",),
    "dfdc": ("dfdc",),
    "ffiw": ("ffiw",),
    "dsv1": ("dsv1", "deepspeak-v1"),
}

PUBLISHED = (
    Published(
        "linear probe", DD, {"cdfv2": 78.13, "dfd": 88.15, "dfdc": 73.62, "ffiw": 79.28, "dsv1": 63.65}
    ),
    Published("LN-tuning", DD, {"cdfv2": 94.88, "dfd": 96.83, "dfdc": 86.41, "ffiw": 92.24, "dsv1": 83.57}),
    Published(
        "LN + L2 norm", DD, {"cdfv2": 96.21, "dfd": 98.18, "dfdc": 87.82, "ffiw": 92.72, "dsv1": 88.81}
    ),
    Published("full method", DD, {"cdfv2": 96.62, "dfd": 98.00, "dfdc": 87.15, "ffiw": 91.52, "dsv1": 92.01}),
    Published("LNCLIP-DF (GenD)", GEND, {"cdfv2": 96.5, "dfd": 97.3, "dfdc": 87.0, "ffiw": 93.5}),
)


def match(name: str) -> str | None:
    """The key of the published test set that a set's name begins with; ``dfdcp`` is not ``dfdc``.

    Nothing was published of re-compressed sets.
    """
    if split_recompression(name):
        return None
    text = name.lower().replace("_", "-")
    for key, prefixes in _PREFIXES.items():
        if any(re.match(rf"{re.escape(prefix)}(?![a-z0-9])", text) for prefix in prefixes):
            return key
    return None


def matched(names: Iterable[str]) -> dict[str, str]:
    """Keys of published test sets by the names of one's own that match."""
    return {name: key for name in names if (key := match(name))}
