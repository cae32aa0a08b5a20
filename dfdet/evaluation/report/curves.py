"""Points of curves and histograms, few enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfdet.evaluation import metrics
from dfdet.evaluation.aggregate import Units

Floats = NDArray[np.float64]

STEPS = 200
"""Points of a curve along each axis at most."""
BINS = 25


@dataclass(frozen=True, eq=False)
class Ranked:
    """A ROC with its precision, from the highest score down, ``[k]``."""

    alarm_rate: Floats
    """False positive rate; the first is 0."""
    hit_rate: Floats
    """True positive rate (recall)."""
    precision: Floats
    reals: int
    fakes: int


def ranked(units: Units) -> Ranked | None:
    """The curve of some videos; None where there is one class only."""
    counts = metrics.curve(units.label, units.score)
    if counts is None:
        return None
    hits, alarms = np.append(0, counts.hits), np.append(0, counts.alarms)
    precision = np.append(0.0, counts.hits / (counts.hits + counts.alarms))
    precision[0] = precision[1]
    reals, fakes = int(alarms[-1]), int(hits[-1])
    kept = _kept(alarms / reals, hits / fakes)
    return Ranked(alarms[kept] / reals, hits[kept] / fakes, precision[kept], reals, fakes)


def _kept(alarm_rate: Floats, hit_rate: Floats) -> NDArray[np.intp]:
    """Corners of the curve, evenly along both axes and along the logarithm of the rate of false alarms."""
    step_x, step_y = np.diff(alarm_rate), np.diff(hit_rate)
    straight = ((step_x[1:] == 0) & (step_x[:-1] == 0)) | ((step_y[1:] == 0) & (step_y[:-1] == 0))
    corners = np.flatnonzero(np.concatenate([[True], ~straight, [True]]))
    if len(corners) <= STEPS:
        return corners
    x, y = alarm_rate[corners], hit_rate[corners]
    low = np.log10(x[x > 0].min())
    places = (
        np.searchsorted(x, np.linspace(0, 1, STEPS)),
        np.searchsorted(x, np.logspace(low, 0, STEPS)),
        np.searchsorted(y, np.linspace(0, 1, STEPS)),
        [0, len(corners) - 1],
    )
    return corners[np.unique(np.minimum(np.concatenate(places), len(corners) - 1)).astype(np.intp)]


def operating_point(units: Units, threshold: float) -> tuple[float, float]:
    """Rates of false alarms and of hits at a threshold; both classes must be there."""
    called, fake = units.score >= threshold, units.label == 1
    return float(np.mean(called[~fake])), float(np.mean(called[fake]))


def shares(scores: Floats) -> tuple[Floats, Floats]:
    """Share of the scores in each bin from 0 to 1 (per cent) ``[BINS]``, and the bins' bounds."""
    counts, edges = np.histogram(np.clip(scores, 0, 1), bins=BINS, range=(0, 1))
    return 100 * counts / max(1, len(scores)), edges
