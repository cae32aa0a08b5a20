"""The decision threshold and temperature of a detector, fitted on a named validation set.

They are carried to every other set, never fitted there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfdet.errors import DfdetError, WeightsError
from dfdet.evaluation.metrics import checked, equal_error_rate, video_scores

logger = logging.getLogger(__name__)

COLDEST, HOTTEST = 0.05, 20.0
_NEAREST = 1e-7
"""Distance of a float32 probability from 0 and 1 below which its logit is not known."""


class Threshold(BaseModel):
    """What ``threshold.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    threshold: float
    """``score >= threshold`` says fake; on scores before any temperature."""
    temperature: float = Field(ge=COLDEST, le=HOTTEST)
    """Calibrated probability of a frame: sigmoid(logit / temperature) (arXiv 1706.04599)."""
    level: Literal["frame", "video"]
    """Whether the threshold was fitted to scores of frames or to mean scores of videos."""
    aggregate: str = "mean"
    """How the scores of videos were made from those of their frames."""
    eer: float = Field(ge=0, le=1)
    """Equal error rate on the validation set, where the threshold lies (fraction)."""
    set_name: str
    """Validation set it was fitted on."""
    set_fingerprint: str
    """Fingerprint of that set."""
    frames: int = Field(gt=0)
    """Frames it was fitted on (frames)."""


def fit(
    labels: ArrayLike,
    scores: ArrayLike,
    set_fingerprint: str,
    set_name: str,
    *,
    video: ArrayLike | None = None,
    logits: ArrayLike | None = None,
) -> Threshold | None:
    """Threshold at the equal error rate, and the temperature of least negative log-likelihood.

    Args:
        labels: 0 real, 1 fake ``[n]``.
        scores: Fake probabilities of frames ``[n]`` (0 to 1).
        set_fingerprint: Of the validation set.
        set_name: Its name.
        video: Codes of videos ``[n]``: the threshold is then fitted to mean scores of videos.
        logits: Fake minus real logits of frames ``[n]``; None takes them from ``scores``, which loses
            those near 0 and 1.

    Returns:
        None, with the reason in the log, where the set has one class only.

    Raises:
        DfdetError: Scores that are not finite or no probabilities, or a video of both labels.
    """
    fake, frames = checked(labels, scores)
    margins = _logits(frames) if logits is None else checked(labels, logits)[1]
    if video is None:
        found = equal_error_rate(fake, frames)
    else:
        found = equal_error_rate(*video_scores(video, labels, scores)[1:])
    if found is None:
        logger.warning(
            "no threshold: the validation set %s has %s only", set_name, "fakes" if fake.any() else "reals"
        )
        return None
    return Threshold(
        threshold=found[1],
        temperature=fit_temperature(fake, margins),
        level="frame" if video is None else "video",
        eer=found[0],
        set_name=set_name,
        set_fingerprint=set_fingerprint,
        frames=len(frames),
    )


def read(path: Path) -> Threshold:
    """Reads a ``threshold.json``.

    Raises:
        WeightsError: It is missing or no threshold.
    """
    try:
        return Threshold.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise WeightsError(
            f"{path}: no threshold can be read ({str(error).splitlines()[0]}); evaluate the checkpoint with"
            " --val NAME=SET.json to fit one"
        ) from error


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """Temperature within .05 to 20 that minimises the likelihood's loss of ``sigmoid(logit / T)``.

    The loss is convex in 1/T, so it has one valley in log T, which golden sections close in on.
    Separable scores have none: they end at .05, as sure as is allowed.
    """
    fake, values = checked(labels, logits)
    signed = np.where(fake, values, -values)

    def loss(log_temperature: float) -> float:
        return float(np.mean(np.logaddexp(0.0, -signed / math.exp(log_temperature))))

    best = _golden_section(loss, math.log(COLDEST), math.log(HOTTEST))
    return min(max(math.exp(best), COLDEST), HOTTEST)


def _golden_section(loss: Callable[[float], float], low: float, high: float, width: float = 1e-5) -> float:
    """Position of the lowest loss among the ends and the valley between them."""
    ratio = (math.sqrt(5) - 1) / 2
    ends = (low, high)
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    losses = [loss(x) for x in inner]
    while high - low > width:
        if losses[0] <= losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - ratio * (high - low)
            losses[0] = loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + ratio * (high - low)
            losses[1] = loss(inner[1])
    return min([*ends, (low + high) / 2], key=loss)


def _logits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.any((probabilities < 0) | (probabilities > 1)):
        raise DfdetError("scores outside 0 to 1 are no probabilities: pass their logits too")
    inside = np.clip(probabilities, _NEAREST, 1 - _NEAREST)
    return np.log(inside) - np.log1p(-inside)
