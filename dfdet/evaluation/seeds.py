"""What several seeds of one setting say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

CONFIDENCE = 0.95
Interval = tuple[float, float]


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Student's interval of the mean, None of one value: mean +- t sd / sqrt(n)."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
