"""What the report asks of a result: its rows, and the videos of each checkpoint on each test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from dfdet.data.index import Index
from dfdet.evaluation import aggregate
from dfdet.evaluation.aggregate import UndetectedAs, Units
from dfdet.evaluation.bootstrap import Estimate
from dfdet.evaluation.result import Found, Result
from dfdet.evaluation.scored import POOLED, Scored
from dfdet.evaluation.summary import ALL, MACRO, Level, Row
from dfdet.schema import decode_part

NONE = "-"
METRICS = {
    "auroc": "AUROC",
    "ap": "AP",
    "eer": "EER",
    "tpr_at_fpr_1e-3": "TPR at FPR .1\u00a0%",
    "tpr_at_fpr_1e-2": "TPR at FPR 1\u00a0%",
    "tpr_at_fpr_5e-2": "TPR at FPR 5\u00a0%",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
}
"""Columns of the summary."""


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint on a test set."""

    found: Found
    place: int
    """Of the checkpoint among all: what its colour comes from."""
    scored: Scored
    index: Index

    @property
    def label(self) -> str:
        """The checkpoint's."""
        return self.found.model.label

    @property
    def name(self) -> str:
        """The set's."""
        return self.scored.name

    @cached_property
    def videos(self) -> Units:
        """Its videos with a score."""
        return aggregate.videos(self.scored, self.found.summary.settings.aggregate)

    @property
    def threshold(self) -> float | None:
        """That scores of videos are compared with."""
        return self.found.summary.settings.threshold_at("video")


def cases(result: Result) -> dict[str, list[Case]]:
    """By test set, one a checkpoint."""
    return {
        name: [
            Case(found, place, result.scores.tests[found.model.label][name], index)
            for place, found in enumerate(result.found)
        ]
        for name, index in result.request.tests.items()
    }


def rows(found: Found, level: Level, undetected: UndetectedAs = "excluded") -> Iterator[Row]:
    """A checkpoint's rows of whole sets, with their sums."""
    for row in found.summary.rows:
        if (row.level, row.undetected, row.subset) == (level, undetected, ALL):
            yield row


def methods(found: Found, name: str) -> dict[str, Row]:
    """Video-level rows of a set's forgery methods, by the method."""
    return {
        row.subset: row
        for row in found.summary.rows
        if (row.set, row.level, row.undetected) == (name, "video", "excluded") and row.subset != ALL
    }


def headline(found: Found) -> Row:
    """The row that tells most in one number: the macro average, else that of the first set."""
    whole = list(rows(found, "video"))
    return next((row for row in whole if row.set == MACRO), whole[0])


def set_text(name: str) -> str:
    """Name of a set or of a sum over sets, for people."""
    return {POOLED: "all, pooled", MACRO: "mean of the sets (macro)"}.get(name, name)


def number_text(value: float | None) -> str:
    """A metric, as the console has it."""
    return NONE if value is None else f"{value:.4f}"


def interval_text(estimate: Estimate) -> str:
    """Bounds of an interval; empty without."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def video_text(video: str) -> str:
    """``<dataset>/<source>/<video>`` as it was before it was encoded."""
    return "/".join(map(decode_part, video.split("/")))
