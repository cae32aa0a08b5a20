"""Intervals and paired tests by resampling clusters: frames of a video, and videos of a person, go together.

Each cluster has its own Poisson(1) count in each resample (the Poisson bootstrap: Hanley and MacGibbon,
2006; Chamandy et al., 2012), a hash of the seed, the cluster's name and the resample's number. The counts
of a set thus do not depend on its order or on the sets beside it, and the frames, videos and methods of a
set, sets that share clusters, and checkpoints under comparison see the same draws. Multinomial counts are
the same but for their fixed sum, which no metric here depends on. Scores are sorted once; a resample only
weighs them. DeLong's test is no choice: it takes videos as independent, which clusters deny.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfdet.data.hashing import Uint64, chain
from dfdet.errors import ConfigError
from dfdet.evaluation.aggregate import Units
from dfdet.evaluation.metrics import FALSE_ALARM_RATES, level_metrics

Floats = NDArray[np.float64]

RANKING = ("auroc", "ap", "ap_macro", "eer", *(f"tpr_at_fpr_{text}" for text in FALSE_ALARM_RATES))
THRESHOLDED = ("balanced_accuracy", "f1")
METRICS = RANKING + THRESHOLDED

_CELLS = 2**20
"""Numbers of one array of a chunk: about ten such of 8 MiB live at a time."""
_POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(19)])
"""P(count <= 0, 1, ...) at mean 1; the last is 1 in float64."""


@dataclass(frozen=True)
class Resampling:
    """How intervals are found."""

    resamples: int = 2000
    confidence: float = 0.95
    """Share of resamples between the percentiles."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise ConfigError(
                f"resamples={self.resamples}, confidence={self.confidence}: give at least one resample"
                " and a confidence between 0 and 1"
            )


@dataclass(frozen=True)
class Estimate:
    """A metric with its percentile interval."""

    value: float | None
    """None where the set does not allow the metric."""
    low: float | None = None
    """None where no interval can be told."""
    high: float | None = None
    resamples: int = 0
    """Resamples that had the metric; those of one class only are left out."""

    def named(self, name: str) -> dict[str, float | None]:
        """Value and bounds as ``<name>``, ``<name>_low`` and ``<name>_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Difference:
    """One checkpoint's metric less another's on the same videos."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Two-sided bootstrap p-value, no less than 2 / (resamples + 1)."""
    resamples: int = 0


def point(units: Units, threshold: float | None = None) -> dict[str, float | None]:
    """Every metric of ``METRICS``; those at a threshold are None without one."""
    found = level_metrics(units.label, units.score, threshold)
    return {name: found.get(name) for name in METRICS}


def replicates(units: Units, resampling: Resampling, threshold: float | None = None) -> dict[str, Floats]:
    """Every metric in every resample ``[resamples]``, NaN where it drew one class only.

    A rate of false alarms that the set itself resolves is taken in all resamples, however many reals each
    drew. Time and memory: resamples x units, in chunks of bounded memory.
    """
    found = {name: np.full(resampling.resamples, np.nan) for name in METRICS}
    if len(units) == 0:
        return found
    ranks = _Ranks.of(units, threshold)
    for first, last in _chunks(resampling.resamples, len(units)):
        part = weights(ranks.words, first, last, resampling.seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = ranks.metrics(part)
        for name, value in values.items():
            found[name][first:last] = value
    return found


def words(names: Sequence[str]) -> Uint64:
    """Hash of each cluster's name, from which its counts come."""
    heads = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    return np.frombuffer(b"".join(heads), "<u8").astype(np.uint64)


def weights(clusters: Uint64, first: int, last: int, seed: int) -> NDArray[np.uint8]:
    """Counts of clusters in the resamples from ``first`` up to ``last``, ``[last - first, clusters]``.

    Args:
        clusters: As :func:`words` gives them ``[clusters]``.
    """
    bits = chain(seed, clusters[None, :], np.arange(first, last)[:, None])
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.uint8)


def estimates(
    values: dict[str, float | None],
    drawn: dict[str, Floats],
    confidence: float,
    clusters: int,
) -> dict[str, Estimate]:
    """Percentile intervals of metrics.

    Args:
        values: The metrics of the set itself.
        drawn: Those of its resamples.
        confidence: Share of resamples between the percentiles.
        clusters: Of the set: one alone has nothing to resample, so there is no interval.
    """
    found = {}
    for name, value in values.items():
        kept = drawn[name][np.isfinite(drawn[name])]
        if value is None or clusters < 2 or not _enough(kept, drawn[name]):
            found[name] = Estimate(value)
        else:
            found[name] = Estimate(value, *_percentiles(kept, confidence), len(kept))
    return found


def difference(
    values: tuple[float | None, float | None],
    drawn: tuple[Floats, Floats],
    confidence: float,
    clusters: int,
) -> Difference:
    """A metric of the first checkpoint less that of the second, resampled together.

    The p-value inverts the percentile interval: twice the smaller share of resamples on a side of zero,
    zero itself on both.
    """
    if values[0] is None or values[1] is None:
        return Difference(None)
    value, gaps = values[0] - values[1], drawn[0] - drawn[1]
    kept = gaps[np.isfinite(gaps)]
    if clusters < 2 or not _enough(kept, gaps):
        return Difference(value)
    beyond = min(np.sum(kept <= 0), np.sum(kept >= 0))
    p = min(1.0, 2 * (int(beyond) + 1) / (len(kept) + 1))
    return Difference(value, *_percentiles(kept, confidence), p, len(kept))


def _enough(kept: Floats, drawn: Floats) -> bool:
    """Whether at least half of the resamples gave the metric; of fewer no interval is told."""
    return 2 * len(kept) >= len(drawn)


def _percentiles(kept: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _chunks(resamples: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _CELLS // width)
    return ((first, min(first + rows, resamples)) for first in range(0, resamples, rows))


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Units sorted once from the highest score down, to be weighed again and again."""

    words: Uint64
    """Clusters that occur ``[k]``."""
    cluster: NDArray[np.intp]
    """Cluster of each place ``[n]``."""
    fake: NDArray[np.uint8]
    """1 where a fake is in the place ``[n]``."""
    starts: NDArray[np.intp] | None
    """First place of each distinct score; None where all are distinct."""
    counts: Floats
    """Fakes, reals, fakes called fake and reals called fake of each cluster ``[k, 4]``."""
    resolved: dict[str, float]
    """False alarm rates that the set's reals resolve."""
    thresholded: bool

    @classmethod
    def of(cls, units: Units, threshold: float | None) -> _Ranks:
        order = np.argsort(-units.score, kind="stable")
        score, label = units.score[order], units.label[order].astype(np.uint8)
        codes, cluster = np.unique(units.cluster[order], return_inverse=True)
        starts = np.append(0, np.flatnonzero(np.diff(score)) + 1)
        called = score >= (np.inf if threshold is None else threshold)
        columns = (label == 1, label == 0, (label == 1) & called, (label == 0) & called)
        reals = int(np.sum(label == 0)) * (1 + 1e-12)
        return cls(
            words=words([units.clusters[code] for code in codes.tolist()]),
            cluster=cluster,
            fake=label,
            starts=None if len(starts) == len(score) else starts,
            counts=np.stack([np.bincount(cluster, each, minlength=len(codes)) for each in columns], axis=1),
            resolved={text: rate for text, rate in FALSE_ALARM_RATES.items() if reals * rate >= 1},
            thresholded=threshold is not None,
        )

    def metrics(self, weight: NDArray[np.uint8]) -> dict[str, Floats]:
        """Metrics under counts of clusters ``[r, k]``, each ``[r]``; NaN where a class is missing."""
        totals = (weight.astype(np.float64) @ self.counts).T
        found = self._ranking(weight) | (_called(*totals) if self.thresholded else {})
        one_class = (totals[0] == 0) | (totals[1] == 0)
        return {name: np.where(one_class, np.nan, value) for name, value in found.items()}

    def _ranking(self, weight: NDArray[np.uint8]) -> dict[str, Floats]:
        """The formulas of :class:`dfdet.evaluation.metrics.Curve`, a row a resample."""
        placed = weight[:, self.cluster]
        new_hits, new_alarms = self._at_scores(placed * self.fake), self._at_scores(placed * (1 - self.fake))
        hits, alarms = np.cumsum(new_hits, axis=1), np.cumsum(new_alarms, axis=1)
        fakes, reals = hits[:, -1:], alarms[:, -1:]
        ap = _mean_precision(new_hits, hits, alarms)
        ap_reals = _mean_precision(new_alarms, reals - alarms + new_alarms, fakes - hits + new_hits)
        pairs = (fakes * reals)[:, 0]
        return {
            "auroc": np.einsum("rk,rk->r", new_alarms, 2 * hits - new_hits) / (2 * pairs),
            "ap": ap / fakes[:, 0],
            "ap_macro": (ap / fakes[:, 0] + ap_reals / reals[:, 0]) / 2,
            "eer": _equal_error_rate(hits / fakes, alarms / reals),
            **{f"tpr_at_fpr_{text}": _hit_rate(hits, alarms, rate) for text, rate in self.resolved.items()},
        }

    def _at_scores(self, counts: NDArray[np.uint8]) -> Floats:
        if self.starts is None:
            return counts.astype(np.float64)
        return np.add.reduceat(counts, self.starts, axis=1, dtype=np.float64)


def _mean_precision(new: Floats, right: Floats, wrong: Floats) -> Floats:
    """Sum of ``new * right / (right + wrong)`` over distinct scores, 0 where nothing was drawn."""
    return np.einsum("rk,rk->r", new, right / np.maximum(right + wrong, 1))


def _equal_error_rate(hit_rate: Floats, alarm_rate: Floats) -> Floats:
    row = np.arange(len(hit_rate))
    gap = alarm_rate - (1 - hit_rate)
    after = np.argmax(gap >= 0, axis=1)
    first = after == 0
    before = np.maximum(after - 1, 0)
    gap_after, alarm_after = gap[row, after], alarm_rate[row, after]
    gap_before = np.where(first, -1.0, gap[row, before])
    alarm_before = np.where(first, 0.0, alarm_rate[row, before])
    return alarm_after + gap_after / (gap_after - gap_before) * (alarm_before - alarm_after)


def _hit_rate(hits: Floats, alarms: Floats, rate: float) -> Floats:
    """Highest hit rate at no more than a rate of false alarms; 0 before the first score."""
    within = np.sum(alarms <= alarms[:, -1:] * (rate * (1 + 1e-12)), axis=1)
    reached = hits[np.arange(len(hits)), np.maximum(within - 1, 0)]
    return np.where(within > 0, reached, 0.0) / hits[:, -1]


def _called(fakes: Floats, reals: Floats, hits: Floats, alarms: Floats) -> dict[str, Floats]:
    return {
        "balanced_accuracy": (hits / fakes + (reals - alarms) / reals) / 2,
        "f1": 2 * hits / (hits + alarms + fakes),
    }
