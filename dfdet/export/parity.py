"""Whether a format scores as the model does, and what its precision costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfdet.errors import DfdetError
from dfdet.evaluation.metrics import auroc

SCORE_TOLERANCE = 1e-5
"""Largest difference of a score that float32 arithmetic explains; measured are 2e-7 (probability)."""
LOGIT_TOLERANCE = 1e-4
"""The same of a logit; crops whose logits lie further apart than twice this must keep their order."""

SCORE_SHARE = 10
"""A lower precision may change a single score by so many times what it may cost in AUROC."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """A format against the float32 model, on the same crops."""

    max_score_difference: float
    """Of fake probabilities (0 to 1)."""
    max_logit_difference: float
    """Of fake minus real logits."""
    same_ranking: bool
    """Whether no two crops change their order; where one side has a tie, none did."""
    widest_swap: float
    """How far apart the model's logits of two crops are that change their order, at most; else 0."""
    auroc: float | None
    """Of the format; None without labels of both classes."""
    auroc_change: float | None
    """Against the model; below 0 it is worse."""
    crops: int
    """Crops compared."""


def compare(
    reference_scores: ArrayLike,
    reference_logits: ArrayLike,
    scores: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike | None = None,
) -> Parity:
    """Compares a format's scores with the model's.

    Args:
        reference_scores: The model's fake probabilities ``[n]``.
        reference_logits: Its fake minus real logits ``[n]``.
        scores: The format's fake probabilities ``[n]``.
        logits: Its fake minus real logits ``[n]``.
        labels: 0 real, 1 fake ``[n]``, where known.

    Raises:
        DfdetError: Scores or logits that are not finite, or of other numbers of crops.
    """
    score_pair = _finite(reference_scores, "model's scores"), _finite(scores, "format's scores")
    logit_pair = _finite(reference_logits, "model's logits"), _finite(logits, "format's logits")
    if len({len(values) for values in (*score_pair, *logit_pair)}) > 1 or not len(score_pair[0]):
        raise DfdetError(f"{len(score_pair[1])} scores for {len(score_pair[0])} crops: cannot be compared")
    swap = widest_swap(*logit_pair)
    before, after = (auroc(labels, values) if labels is not None else None for values in logit_pair)
    return Parity(
        max_score_difference=_largest_difference(*score_pair),
        max_logit_difference=_largest_difference(*logit_pair),
        same_ranking=swap == 0,
        widest_swap=swap,
        auroc=after,
        auroc_change=None if before is None or after is None else after - before,
        crops=len(score_pair[0]),
    )


def _finite(values: ArrayLike, what: str) -> Floats:
    numbers = np.asarray(values, np.float64)
    if bad := int(np.sum(~np.isfinite(numbers))):
        raise DfdetError(
            f"{bad} of {len(numbers)} of the {what} are NaN or infinite: the precision does not hold its"
            " numbers, or the model is damaged; leave this precision out"
        )
    return numbers


def _largest_difference(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max())


def widest_swap(reference: Floats, values: Floats) -> float:
    """Largest gap in ``reference`` ``[n]`` of two entries that ``values`` ``[n]`` puts the other way round.

    A pair that is equal on either side has changed no order.
    """
    order = np.argsort(reference, kind="stable")
    rising, found = reference[order], values[order]
    highest = np.maximum.accumulate(found)
    first = np.searchsorted(highest, found, side="right")  # the lowest entry that is now above
    gaps = rising - rising[np.minimum(first, np.arange(len(found)))]
    return float(gaps.max())


def judge(parity: Parity, precision: str, bound: float) -> str | None:
    """Why a format must not be used; None where it may.

    In float32 it must agree within what its arithmetic explains: scores within ``SCORE_TOLERANCE``,
    logits within ``LOGIT_TOLERANCE``, so that no two crops further apart than twice that change order.
    A lower precision may lower the AUROC by ``bound``, and change a score by ``SCORE_SHARE`` times that.
    """
    if precision == "float32":
        return _disagreement(parity)
    drop = -(parity.auroc_change or 0.0)
    costs = [
        ("a score changes by", parity.max_score_difference, SCORE_SHARE * bound),
        ("the AUROC drops by", drop, bound),
    ]
    told = [f"{what} {cost:.2g} (allowed {limit:g})" for what, cost, limit in costs if cost > limit]
    if not told:
        return None
    return (
        f"{precision}: {' and '.join(told)} on {parity.crops} crops with --bound {bound:g};"
        " leave it out, raise --bound, or take it with --force"
    )


def _disagreement(parity: Parity) -> str | None:
    limits = [
        ("scores", parity.max_score_difference, SCORE_TOLERANCE),
        ("logits", parity.max_logit_difference, LOGIT_TOLERANCE),
    ]
    told = [
        f"{what} differ by {value:.2g} (allowed {limit:g})" for what, value, limit in limits if value > limit
    ]
    if not told:
        return None
    return (
        f"float32: {' and '.join(told)} on {parity.crops} crops: the graph is not the model;"
        " try other versions of torch and onnxruntime"
    )
