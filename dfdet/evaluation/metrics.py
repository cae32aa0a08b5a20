"""Metrics of detection, exact at ties, in NumPy alone: a fake is the positive class.

A score is higher the more likely a fake; ``score >= threshold`` says fake. With one class only there is
nothing to rank: the metric is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfdet.errors import DfdetError

FALSE_ALARM_RATES = {"1e-3": 1e-3, "1e-2": 1e-2, "5e-2": 5e-2}

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Counts at each distinct score, from the highest down: what is called fake at ``score >= it``."""

    scores: Floats
    """Distinct scores, falling ``[k]``."""
    hits: NDArray[np.int64]
    """Fakes called fake ``[k]``; the last is the number of fakes."""
    alarms: NDArray[np.int64]
    """Reals called fake ``[k]``; the last is the number of reals."""

    @property
    def hit_rate(self) -> Floats:
        """True positive rate ``[k]``."""
        return self.hits / self.hits[-1]

    @property
    def alarm_rate(self) -> Floats:
        """False positive rate ``[k]``."""
        return self.alarms / self.alarms[-1]

    def auroc(self) -> float:
        """Share of pairs (fake, real) in order, a tie counting half: Mann-Whitney's U by midranks."""
        fewer_hits = np.concatenate([[0], self.hits[:-1]])
        twice = np.sum(np.diff(self.alarms, prepend=0) * (self.hits + fewer_hits))  # integers: exact
        return float(twice / (2 * self.hits[-1] * self.alarms[-1]))

    def average_precision(self) -> float:
        """Precision summed over steps of recall, without interpolation (as scikit-learn has it)."""
        steps = np.diff(self.hits, prepend=0) / self.hits[-1]
        return float(np.sum(steps * self.hits / (self.hits + self.alarms)))

    def equal_error_rate(self) -> tuple[float, float]:
        """Where the ROC, its points joined by lines, has as many misses as false alarms, and a threshold.

        The threshold is in the middle of the gap below the point of least difference, so that it
        carries over to other sets.
        """
        alarm, miss = np.append(0.0, self.alarm_rate), np.append(1.0, 1 - self.hit_rate)
        gap = alarm - miss  # from -1 to 1, never falling
        after = int(np.argmax(gap >= 0))
        part = gap[after] / (gap[after] - gap[after - 1])
        eer = alarm[after] + part * (alarm[after - 1] - alarm[after])
        return float(eer), self._below(int(np.argmin(np.abs(gap[1:]))))

    def _below(self, point: int) -> float:
        score = float(self.scores[point])
        if point + 1 == len(self.scores):
            return score
        lower = float(self.scores[point + 1])
        middle = lower + (score - lower) / 2
        return middle if middle > lower else score

    def hit_rate_at(self, alarm_rate: float) -> float | None:
        """Highest true positive rate at no more than a false positive rate.

        None where that rate is less than one of the reals: so few cannot resolve it.
        """
        allowed = self.alarms[-1] * alarm_rate * (1 + 1e-12)
        if allowed < 1:
            return None
        within = self.alarms <= allowed
        return float(self.hit_rate[within].max(initial=0.0))


def curve(labels: ArrayLike, scores: ArrayLike) -> Curve | None:
    """The counts that all ranking metrics need; None where there is one class only.

    Args:
        labels: 0 real, 1 fake ``[n]``.
        scores: Any finite numbers ``[n]``.

    Raises:
        DfdetError: Scores that are not finite (how many), or labels that are no 0 or 1 for each.
    """
    fake, values = checked(labels, scores)
    if fake.all() or not fake.any():
        return None
    order = np.argsort(-values)
    values, fake = values[order], fake[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits = np.cumsum(fake, dtype=np.int64)[ends]
    return Curve(values[ends], hits, ends + 1 - hits)


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Labels, Floats]:
    """Labels as truth of being fake and scores in float64.

    Raises:
        DfdetError: As :func:`curve`.
    """
    label, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.shape != values.shape or label.ndim != 1:
        raise DfdetError(f"labels {label.shape} and scores {values.shape}: must be two lists of one length")
    if bad := int(np.sum(~np.isfinite(values))):
        raise DfdetError(
            f"{bad} of {len(values)} scores are NaN or infinite: the model is damaged or diverged"
        )
    if not np.isin(label, (0, 1)).all():
        raise DfdetError("labels must be 0 (real) or 1 (fake)")
    return label.astype(bool), values


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve; ties count half."""
    counts = curve(labels, scores)
    return counts.auroc() if counts else None


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision of the fake class."""
    counts = curve(labels, scores)
    return counts.average_precision() if counts else None


def average_precision_macro(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Mean of the average precisions of fakes and of reals (public code calls it mAP)."""
    fake, values = checked(labels, scores)
    fakes, reals = curve(fake, values), curve(~fake, -values)
    return (fakes.average_precision() + reals.average_precision()) / 2 if fakes and reals else None


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float] | None:
    """Equal error rate and a threshold for it."""
    counts = curve(labels, scores)
    return counts.equal_error_rate() if counts else None


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float | None:
    """True positive rate at no more than a false positive rate; None where too few reals resolve it."""
    counts = curve(labels, scores)
    return counts.hit_rate_at(fpr) if counts else None


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Mean of the rates of fakes called fake and of reals called real."""
    fake, values = checked(labels, scores)
    if fake.all() or not fake.any():
        return None
    called = values >= threshold
    return float((np.mean(called[fake]) + np.mean(~called[~fake])) / 2)


def f1(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Harmonic mean of precision and recall of the fake class."""
    fake, values = checked(labels, scores)
    if fake.all() or not fake.any():
        return None
    called = values >= threshold
    return float(2 * np.sum(called & fake) / (np.sum(called) + np.sum(fake)))


def video_scores(
    video: ArrayLike, labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.int64], Floats]:
    """Mean score of each video's frames.

    Args:
        video: Codes of dataset, method and video together ``[n]``: a base name alone would mix videos.
        labels: 0 real, 1 fake ``[n]``.
        scores: Frame scores ``[n]``.

    Returns:
        Codes, rising, labels and mean scores ``[videos]``.

    Raises:
        DfdetError: A video has frames of both labels, or as :func:`curve`.
    """
    fake, values = checked(labels, scores)
    codes, row = np.unique(np.asarray(video), return_inverse=True)
    frames, fakes = np.bincount(row, minlength=len(codes)), np.bincount(row, fake, minlength=len(codes))
    mixed = codes[(fakes > 0) & (fakes < frames)]
    if len(mixed):
        raise DfdetError(
            f"{len(mixed)} videos (the first has code {mixed[0]}) have real and fake frames;"
            " a video is one of dataset, method and name: index the set again"
        )
    return codes, (fakes > 0).astype(np.int64), np.bincount(row, values, minlength=len(codes)) / frames


def compute(
    split: str,
    name: str,
    labels: ArrayLike,
    scores: ArrayLike,
    video: ArrayLike,
    method_codes: ArrayLike,
    methods: Sequence[str],
    threshold: float | None = None,
) -> dict[str, float | None]:
    """All metrics of a set at frame and video level, as ``<split>/<set>/<level>/<name>``.

    Args:
        split: ``train``, ``val`` or ``test``.
        name: The set's name.
        labels: 0 real, 1 fake ``[n]``.
        scores: Frame scores ``[n]``.
        video: As for :func:`video_scores` ``[n]``.
        method_codes: Index into ``methods`` ``[n]``.
        methods: Names of the forgery methods (``real`` among them).
        threshold: Fitted on a validation set and carried here; None leaves out what needs one.

    Raises:
        DfdetError: As :func:`video_scores`.
    """
    _, video_labels, means = video_scores(video, labels, scores)
    first = np.unique(np.asarray(video), return_index=True)[1]
    level = {"frame": (labels, scores), "video": (video_labels, means)}
    found = {
        f"{split}/{name}/{at}/{metric}": value
        for at, (truth, values) in level.items()
        for metric, value in level_metrics(truth, values, threshold).items()
    }
    by_method = _by_method(video_labels, means, np.asarray(method_codes)[first], methods)
    return found | {f"{split}/{name}/video/auroc/{method}": value for method, value in by_method.items()}


def level_metrics(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, float | None]:
    """All metrics of one level by their short names; those at a threshold are left out without one."""
    counts = curve(labels, scores)
    found = {
        "auroc": counts.auroc() if counts else None,
        "ap": counts.average_precision() if counts else None,
        "ap_macro": average_precision_macro(labels, scores),
        "eer": counts.equal_error_rate()[0] if counts else None,
    }
    for text, rate in FALSE_ALARM_RATES.items():
        found[f"tpr_at_fpr_{text}"] = counts.hit_rate_at(rate) if counts else None
    if threshold is not None:
        found["balanced_accuracy"] = balanced_accuracy(labels, scores, threshold)
        found["f1"] = f1(labels, scores, threshold)
    return found


def _by_method(
    labels: NDArray[np.int64], scores: Floats, codes: NDArray[Any], methods: Sequence[str]
) -> dict[str, float | None]:
    """AUROC of each method's fakes against all reals."""
    return {
        methods[code]: auroc(labels[keep], scores[keep])
        for code in np.unique(codes[labels == 1])
        for keep in [(labels == 0) | (codes == code)]
    }
