"""Several checkpoints on the same videos: differences, their intervals and paired tests over clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from dfdet.errors import InputError
from dfdet.evaluation.bootstrap import METRICS, Difference, difference
from dfdet.evaluation.scored import Scored, pool
from dfdet.evaluation.summary import (
    MACRO,
    Drawn,
    Level,
    Macro,
    Settings,
    View,
    check_names,
    in_totals,
    views,
)


@dataclass(frozen=True)
class Compared:
    """The first checkpoint less the second, on a set."""

    set: str
    """Name of a set, ``pooled`` or ``macro``."""
    level: Level
    first: str
    second: str
    metrics: dict[str, Difference]

    def table_row(self) -> dict[str, Any]:
        """The comparison with a column for each difference, bound and p-value."""
        row: dict[str, Any] = {
            "set": self.set,
            "level": self.level,
            "first": self.first,
            "second": self.second,
        }
        for name, gap in self.metrics.items():
            row |= {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high, f"{name}_p": gap.p}
        return row


@dataclass(frozen=True, eq=False)
class _Measured:
    set: str
    level: Level
    values: dict[str, float | None]
    drawn: Drawn
    clusters: int


def compare(
    candidates: Mapping[str, tuple[Sequence[Scored], Settings]], level: Level = "video"
) -> tuple[Compared, ...]:
    """Each pair of checkpoints on each set, and on several sets pooled and macro-averaged.

    Videos (or frames) must be the same (of a video, other frames may be scored), and undetected videos are
    left out. p-values are of single
    tests: of many, some are small by chance.

    Args:
        candidates: By its name, a checkpoint's scores of the sets and its settings (threshold and
            aggregation may differ, the resampling may not).

    Raises:
        InputError: Fewer than two checkpoints, other sets, other videos, or another resampling.
    """
    _check(candidates, level)
    measured = {name: _measured(*given, level) for name, given in candidates.items()}
    confidence = next(iter(candidates.values()))[1].resampling.confidence
    return tuple(
        _compared(names, pair, confidence)
        for names in combinations(candidates, 2)
        for pair in zip(*(measured[name] for name in names), strict=True)
    )


def _compared(names: tuple[str, ...], pair: Sequence[_Measured], confidence: float) -> Compared:
    first, second = pair
    found = {
        name: difference(
            (first.values[name], second.values[name]),
            (first.drawn[name], second.drawn[name]),
            confidence,
            first.clusters,
        )
        for name in METRICS
    }
    return Compared(first.set, first.level, names[0], names[1], found)


def _measured(sets: Sequence[Scored], settings: Settings, level: Level) -> list[_Measured]:
    def view(scored: Scored) -> View:
        return next(each for each in views(scored, settings) if each.level == level)

    def measured(part: View) -> _Measured:
        return _Measured(part.set, level, part.values, part.drawn, part.counts.clusters)

    parts = {scored.name: view(scored) for scored in sets}
    found = [measured(part) for part in parts.values()]
    if len(whole := in_totals(sets)) > 1:
        mean = Macro.over([parts[scored.name] for scored in whole])
        found += [
            measured(view(pool(whole))),
            _Measured(MACRO, level, mean.values, mean.drawn, mean.clusters),
        ]
    return found


def _check(candidates: Mapping[str, tuple[Sequence[Scored], Settings]], level: Level) -> None:
    if len(candidates) < 2:
        raise InputError("one checkpoint alone: name at least two to compare")
    (name, (sets, settings)), *others = candidates.items()
    check_names(sets)
    for other, (theirs, their_settings) in others:
        if their_settings.resampling != settings.resampling:
            raise InputError(f"{name} and {other} have other resamples: compare under one seed and number")
        if [scored.name for scored in theirs] != [scored.name for scored in sets]:
            raise InputError(f"{name} and {other} scored other sets: score the same with both")
        for ours, scored in zip(sets, theirs, strict=True):
            first, second = _known(ours, level), _known(scored, level)
            if other_units := sum(first.get(key) != second.get(key) for key in first.keys() | second.keys()):
                raise InputError(
                    f"{name} and {other} on {scored.name}: {other_units} {level}s that are not in both with"
                    " one label and cluster; score the same videos with both"
                )


def _known(scored: Scored, level: Level) -> dict[str, tuple[int, str]]:
    """Label and cluster of each frame or video."""
    columns = ("key" if level == "frame" else "video", "label", "cluster")
    return {key: (label, cluster) for key, label, cluster in zip(*_lists(scored, columns), strict=True)}


def _lists(scored: Scored, columns: Sequence[str]) -> list[list[Any]]:
    return [scored.frames[column].to_pylist() for column in columns]
