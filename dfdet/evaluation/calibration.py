"""How far probabilities can be taken at their word: reliability, calibration error, Brier score, log loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfdet.errors import DfdetError
from dfdet.evaluation import aggregate
from dfdet.evaluation.metrics import checked
from dfdet.evaluation.scored import Scored

Binning = Literal["mass", "width"]
BINS = 15
_SMALLEST = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 in the log loss, as scikit-learn does."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: what was said and what came true, by bins of the probability.

    Fakes are the positive class: of videos said to be fake at .8, 80 % should be.
    """

    binning: Binning
    edges: tuple[float, ...]
    """Bounds of the bins ``[bins + 1]``; a bin holds its lower bound, the last its upper one too."""
    confidence: tuple[float | None, ...]
    """Mean probability ``[bins]``; None in an empty bin."""
    fakes: tuple[float | None, ...]
    """Fraction of fakes ``[bins]``."""
    counts: tuple[int, ...]
    """Units ``[bins]``."""

    @property
    def ece(self) -> float:
        """Expected calibration error (arXiv 1706.04599): mean gap of both, weighted by counts."""
        gaps = [
            count * abs(said - true)
            for count, said, true in zip(self.counts, self.confidence, self.fakes, strict=True)
            if said is not None and true is not None
        ]
        return sum(gaps) / sum(self.counts)

    def rows(self) -> list[dict[str, Any]]:
        """A dict a bin, for tables."""
        return [
            {"low": low, "high": high, "confidence": said, "fakes": true, "count": count}
            for low, high, said, true, count in zip(
                self.edges[:-1], self.edges[1:], self.confidence, self.fakes, self.counts, strict=True
            )
        ]


@dataclass(frozen=True)
class Calibration:
    """Measures of one set of probabilities; lower is better."""

    brier: float
    """Mean squared distance of probability and label."""
    log_loss: float
    """Mean negative log-likelihood (nats)."""
    mass: Reliability
    """In bins of equally many units, as far as ties allow."""
    width: Reliability
    """In bins of equal width."""

    def flat(self) -> dict[str, float]:
        """The measures by name."""
        return {
            "brier": self.brier,
            "log_loss": self.log_loss,
            "ece": self.mass.ece,
            "ece_width": self.width.ece,
        }


@dataclass(frozen=True)
class BeforeAfter:
    """Calibration of frames and of videos before and after a temperature."""

    temperature: float
    frame: tuple[Calibration, Calibration]
    video: tuple[Calibration, Calibration]


def measure(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> Calibration | None:
    """Calibration of fake probabilities ``[n]``; None without any. One class suffices.

    Raises:
        DfdetError: Probabilities that are not finite or outside 0 to 1, or labels other than 0 and 1.
    """
    fake, values = _probabilities(labels, probabilities)
    if len(values) == 0:
        return None
    inside = np.clip(values, _SMALLEST, 1 - _SMALLEST)
    return Calibration(
        brier=float(np.mean((values - fake) ** 2)),
        log_loss=float(-np.mean(np.where(fake, np.log(inside), np.log1p(-inside)))),
        mass=reliability(fake, values, "mass", bins),
        width=reliability(fake, values, "width", bins),
    )


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, binning: Binning = "mass", bins: int = BINS
) -> Reliability:
    """The reliability table of fake probabilities ``[n]``.

    Equal probabilities are in one bin, whatever their order, so bins of equal mass may be fewer.

    Raises:
        DfdetError: As :func:`measure`, or there are none.
    """
    fake, values = _probabilities(labels, probabilities)
    if len(values) == 0:
        raise DfdetError("no probabilities to make a reliability table of")
    steps = np.linspace(0, 1, bins + 1)
    edges = steps if binning == "width" else np.unique(np.quantile(values, steps))
    if len(edges) == 1:  # all equal
        edges = np.repeat(edges, 2)
    bin_of = np.searchsorted(edges[1:-1], values, side="right")
    counts = np.bincount(bin_of, minlength=len(edges) - 1)
    said = np.bincount(bin_of, values, minlength=len(counts))
    true = np.bincount(bin_of, fake.astype(np.float64), minlength=len(counts))
    return Reliability(
        binning, tuple(edges.tolist()), _means(said, counts), _means(true, counts), tuple(counts.tolist())
    )


def before_and_after(
    scored: Scored, temperature: float, how: str = "mean", bins: int = BINS
) -> BeforeAfter | None:
    """Calibration of a set before and after a temperature; None for a set without scores.

    A video's probability is aggregated from those of its frames, ``sigmoid(logit / temperature)``.

    Args:
        temperature: Fitted on a validation set.
        how: As for :func:`dfdet.evaluation.aggregate.videos`.
    """
    frames = [aggregate.frames(scored, each) for each in (1.0, temperature)]
    videos = [aggregate.videos(scored, how, temperature=each) for each in (1.0, temperature)]
    found = [measure(units.label, units.score, bins) for units in (*frames, *videos)]
    plain, scaled, plain_video, scaled_video = found
    if plain is None or scaled is None or plain_video is None or scaled_video is None:
        return None
    return BeforeAfter(temperature, (plain, scaled), (plain_video, scaled_video))


def _means(sums: NDArray[Any], counts: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(
        total / count if count else None for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
    )


def _probabilities(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    fake, values = checked(labels, probabilities)
    if np.any((values < 0) | (values > 1)):
        raise DfdetError("scores outside 0 to 1 are no probabilities")
    return fake, values
