"""From the scores of frames to the verdict on a file: aggregation, temperature, threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dfdet.errors import ConfigError
from dfdet.evaluation.aggregate import aggregator, sigmoid
from dfdet.evaluation.threshold import Threshold

Said = Literal["fake", "real"]


@dataclass(frozen=True)
class Rule:
    """What turns a score into a verdict, and where that comes from."""

    threshold: float | None = None
    """``score >= threshold`` says fake; None: no verdict."""
    temperature: float | None = None
    """Of the calibrated probability; None: not calibrated."""
    origin: str = "none: the checkpoint has no threshold.json; evaluate.py --val fits one"
    """In words, for people and records."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a file, or of one face of it."""

    score: float
    """The frames' fake probabilities, aggregated (0 to 1)."""
    probability: float | None
    """The frames' calibrated probabilities, aggregated alike; None without a temperature."""
    verdict: Said | None
    """None without a threshold."""


def rule_of(fitted: Threshold | None, given: float | None = None, aggregate: str = "mean") -> Rule:
    """The rule of a checkpoint.

    Args:
        fitted: Its ``threshold.json``.
        given: A user's own threshold, which goes before.
        aggregate: How frames become a score; a threshold fitted otherwise says so.

    Raises:
        ConfigError: The user's threshold is no probability.
    """
    temperature = fitted.temperature if fitted else None
    if given is not None:
        if not 0 <= given <= 1:
            raise ConfigError(f"--threshold {given:g}: a score lies in 0 to 1")
        return Rule(given, temperature, "--threshold")
    if fitted is None:
        return Rule()
    fit_to = f"{fitted.aggregate} scores of videos" if fitted.level == "video" else "scores of frames"
    origin = f"fitted to {fit_to} of the validation set {fitted.set_name!r}, EER {fitted.eer:.1%}"
    if fitted.level == "frame" or aggregate != fitted.aggregate:
        origin += f"; applied to the {aggregate} over frames of a file"
    return Rule(fitted.threshold, temperature, origin)


def judge(scores: ArrayLike, logits: ArrayLike, rule: Rule, aggregate: str = "mean") -> Verdict:
    """The verdict on one face.

    Args:
        scores: Fake probabilities of its frames ``[n]``, n > 0.
        logits: Their fake minus real logits ``[n]``.
        rule: Of the checkpoint.
        aggregate: ``mean``, ``median``, ``max`` or ``topK``.
    """
    score = combine(scores, aggregate)
    probability = None
    if rule.temperature is not None:
        probability = combine(sigmoid(np.asarray(logits, np.float64) / rule.temperature), aggregate)
    said: Said | None = None
    if rule.threshold is not None:
        said = "fake" if score >= rule.threshold else "real"
    return Verdict(score, probability, said)


def combine(values: ArrayLike, aggregate: str) -> float:
    """One number of those of the frames ``[n]``, as evaluation makes the score of a video.

    Raises:
        ConfigError: No such ``aggregate``.
    """
    found = np.asarray(values, np.float64)
    return float(aggregator(aggregate)(np.zeros(len(found), np.int64), found, 1)[0])
