"""The result of an evaluation as plain data: every metric with its interval, for all sets and subsets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfdet.errors import InputError
from dfdet.evaluation import aggregate, metrics, threshold
from dfdet.evaluation.aggregate import UndetectedAs, Units
from dfdet.evaluation.bootstrap import METRICS, Estimate, Resampling, estimates, point, replicates
from dfdet.evaluation.scored import POOLED, Scored, Undetected, pool, same_checkpoint
from dfdet.evaluation.threshold import Threshold
from dfdet.schema import decode_part, split_recompression

MACRO = "macro"
ALL = "all"
"""Subset of a set: all methods."""
LEVELS: tuple[Level, ...] = ("frame", "video")

Level = Literal["frame", "video"]
Drawn = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Settings:
    """How a summary is made."""

    aggregate: str = "mean"
    """Score of a video from its frames: ``mean``, ``median``, ``max`` or ``topK``."""
    threshold: Threshold | None = None
    """Fitted on a validation set and carried; None leaves out what needs one. Where it was fitted to videos
    that were aggregated in another way, metrics at it are left out at video level."""
    resampling: Resampling = field(default_factory=Resampling)

    def threshold_at(self, level: Level) -> float | None:
        """The threshold that scores of a level are compared with."""
        if self.threshold is None or (level == "video" and self.aggregate != self.threshold.aggregate):
            return None
        return self.threshold.threshold


@dataclass(frozen=True)
class Counts:
    """What a row was computed from."""

    sets: int
    videos: int
    frames: int
    reals: int
    """Units of the level, as ``fakes``."""
    fakes: int
    undetected: int
    """Videos without scores: left out, or among the videos at .5, as the row says."""
    clusters: int


@dataclass(frozen=True)
class Row:
    """The metrics of a subset of a set at a level."""

    set: str
    """Name of a set, ``pooled`` or ``macro``."""
    level: Level
    subset: str
    """``all``, or a forgery method: its fakes with all reals."""
    undetected: UndetectedAs
    counts: Counts
    metrics: dict[str, Estimate]

    def flat(self) -> dict[str, float | None]:
        """Values and bounds as ``test/<set>/<level>/<metric>[_all][/<method>][_low|_high]``."""
        also = "_all" if self.undetected == "half" else ""
        method = "" if self.subset == ALL else f"/{self.subset}"
        found: dict[str, float | None] = {}
        for name, estimate in self.metrics.items():
            found |= estimate.named(f"test/{self.set}/{self.level}/{name}{also}{method}")
        return found

    def table_row(self) -> dict[str, Any]:
        """The row with a column for each count, value and bound."""
        head = {"set": self.set, "level": self.level, "subset": self.subset, "undetected_as": self.undetected}
        row: dict[str, Any] = head | vars(self.counts)
        for name, estimate in self.metrics.items():
            row |= estimate.named(name)
        return row


@dataclass(frozen=True)
class Summary:
    """The rows of a checkpoint's evaluation."""

    checkpoint: str
    settings: Settings
    rows: tuple[Row, ...]

    def flat(self) -> dict[str, float | None]:
        """All metrics by the names of ``result.json``."""
        return {name: value for row in self.rows for name, value in row.flat().items()}

    def table(self) -> list[dict[str, Any]]:
        """All rows with equal columns, for CSV, Markdown and the report."""
        return [row.table_row() for row in self.rows]


def summarise(sets: Sequence[Scored], settings: Settings | None = None) -> Summary:
    """Metrics with intervals of each set, and of several sets together.

    A set has rows for its frames, its videos (``excluded``: without the undetected ones; ``half``: with
    them at .5), and for each method's fakes against all reals. Of several sets ``pooled`` has the same
    rows over all their videos, and ``macro`` the mean of the sets' metrics; :func:`in_totals` says which.

    Raises:
        InputError: No set, sets of several checkpoints, or names that repeat or are kept for totals.
        ConfigError: An aggregation that is none.
    """
    settings = settings or Settings()
    checkpoint = same_checkpoint(sets)
    check_names(sets)
    aggregate.aggregator(settings.aggregate)
    parts = {scored.name: views(scored, settings) for scored in sets}
    rows = [row for part in parts.values() for view in part for row in _rows(view)]
    if len(whole := in_totals(sets)) > 1:
        rows += [row for view in views(pool(whole), settings) for row in _rows(view)]
        rows += [_macro_row(same) for same in zip(*(parts[scored.name] for scored in whole), strict=True)]
    return Summary(checkpoint, settings, tuple(rows))


def in_totals(sets: Sequence[Scored]) -> list[Scored]:
    """The sets that ``pooled`` and ``macro`` are over: all but re-compressed ones, whose videos are others'.

    All, where there are no others.
    """
    return [scored for scored in sets if not _recompressed(scored)] or list(sets)


def _recompressed(scored: Scored) -> bool:
    datasets = {decode_part(video.partition("/")[0]) for video in scored.codes("video")[1]}
    return bool(datasets) and all(split_recompression(dataset) for dataset in datasets)


def fit_threshold(validation: Scored, how: str = "mean") -> Threshold | None:
    """Threshold and temperature fitted on a validation set whose videos are aggregated as ``how`` says.

    None, with the reason in the log, where the set has one class only.
    """
    frames, videos = aggregate.frames(validation), aggregate.videos(validation, how)
    fitted = threshold.fit(
        frames.label,
        frames.score,
        validation.set_fingerprint,
        validation.name,
        video=frames.video,
        logits=validation.column("logit"),
    )
    found = metrics.equal_error_rate(videos.label, videos.score)
    if fitted is None or found is None:
        return None
    return fitted.model_copy(update={"eer": found[0], "threshold": found[1], "aggregate": how})


def check_names(sets: Sequence[Scored]) -> None:
    """Refuses names that would meet in the result.

    Raises:
        InputError: A name occurs twice, is ``pooled`` or ``macro``, or has a slash.
    """
    names = [scored.name for scored in sets]
    for name in names:
        if names.count(name) > 1 or name in (POOLED, MACRO) or "/" in name:
            raise InputError(
                f"test set named {name!r}: names must differ, have no slash, and not be"
                f" {POOLED} or {MACRO}; rename it as NAME=SET.json"
            )


@dataclass(frozen=True, eq=False)
class View:
    """A set, or a subset of it, at a level: what a row measures."""

    set: str
    level: Level
    undetected: UndetectedAs
    units: Units
    frames: NDArray[np.int64]
    """Frames of each unit that have a score ``[n]``; none of an undetected video."""
    missing: tuple[Undetected, ...]
    settings: Settings
    subset: str = ALL

    @cached_property
    def values(self) -> dict[str, float | None]:
        """Metrics of all units."""
        return point(self.units, self.settings.threshold_at(self.level))

    @cached_property
    def drawn(self) -> Drawn:
        """Metrics of all units in each resample."""
        return replicates(self.units, self.settings.resampling, self.settings.threshold_at(self.level))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Metrics with their intervals."""
        confidence = self.settings.resampling.confidence
        return estimates(self.values, self.drawn, confidence, self.counts.clusters)

    @property
    def counts(self) -> Counts:
        """What the metrics are computed from."""
        fakes = int(np.sum(self.units.label))
        return Counts(
            sets=1,
            videos=len(np.unique(self.units.video)),
            frames=int(np.sum(self.frames)),
            reals=len(self.units) - fakes,
            fakes=fakes,
            undetected=len(self.missing),
            clusters=len(np.unique(self.units.cluster)),
        )

    def by_method(self) -> Iterator[View]:
        """A view of each method's fakes with all reals."""
        real = self.units.label == 0
        for code in np.unique(self.units.method[~real]).tolist():
            keep, name = real | (self.units.method == code), self.units.methods[code]
            missing = tuple(video for video in self.missing if video.label == 0 or video.method == name)
            units, frames = self.units.take(keep), self.frames[keep]
            yield replace(self, subset=name, units=units, frames=frames, missing=missing)


def views(scored: Scored, settings: Settings) -> tuple[View, ...]:
    """A set's frames, its videos without the undetected ones, and its videos with them at .5."""
    found = []
    kinds: tuple[tuple[Level, UndetectedAs], ...] = (
        ("frame", "excluded"),
        ("video", "excluded"),
        ("video", "half"),
    )
    every = aggregate.frames(scored)
    per_video = dict(zip(*np.unique(every.video, return_counts=True), strict=True))
    for level, undetected in kinds:
        if level == "frame":
            units, frames = every, np.ones(len(every), np.int64)
        else:
            units = aggregate.videos(scored, settings.aggregate, undetected)
            frames = np.array([per_video.get(video, 0) for video in units.video.tolist()], np.int64)
        found.append(View(scored.name, level, undetected, units, frames, scored.undetected, settings))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Macro:
    """Mean of each metric over the sets that have both classes; None, or NaN, where one of those lacks it."""

    parts: tuple[View, ...]
    values: dict[str, float | None]
    drawn: Drawn
    clusters: int
    """Of all the sets."""

    @classmethod
    def over(cls, parts: Sequence[View]) -> Macro:
        """The mean over sets at one level."""
        kept = [part for part in parts if part.values["auroc"] is not None] or list(parts)
        drawn = {name: np.mean([part.drawn[name] for part in kept], axis=0) for name in METRICS}
        names = {part.units.clusters[code] for part in kept for code in np.unique(part.units.cluster)}
        return cls(tuple(kept), {name: _mean(kept, name) for name in METRICS}, drawn, len(names))


def _mean(parts: Sequence[View], name: str) -> float | None:
    found = [value for part in parts if (value := part.values[name]) is not None]
    return float(np.mean(found)) if len(found) == len(parts) else None


def _rows(view: View) -> Iterator[Row]:
    yield Row(view.set, view.level, ALL, view.undetected, view.counts, view.estimates)
    for part in view.by_method():
        whole = len(part.units) == len(view.units)  # a set of one method
        found = view.estimates if whole else part.estimates
        yield Row(view.set, view.level, part.subset, view.undetected, part.counts, found)


def _macro_row(parts: Sequence[View]) -> Row:
    mean, first = Macro.over(parts), parts[0]
    counts = [part.counts for part in mean.parts]
    sums = {name: sum(getattr(each, name) for each in counts) for name in vars(counts[0])}
    confidence = first.settings.resampling.confidence
    found = estimates(mean.values, mean.drawn, confidence, mean.clusters)
    return Row(MACRO, first.level, ALL, first.undetected, Counts(**sums | {"clusters": mean.clusters}), found)
