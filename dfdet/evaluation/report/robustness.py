"""What becomes of a test set as its pictures get worse: corrupted here, or re-compressed as videos before.

A set of re-compressed videos is known by its dataset's name (``ffpp-c23-h264-crf40``). Its base is the test
set of the dataset before (``ffpp-c23``) that has its samples: only the pixels differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dfdet.data.index import Index
from dfdet.evaluation.bootstrap import Estimate
from dfdet.evaluation.corruptions import grid
from dfdet.evaluation.report.facts import rows
from dfdet.evaluation.result import Found, Result
from dfdet.schema import Recompression, decode_part, split_recompression

AXIS = "crf"


@dataclass(frozen=True)
class Level:
    """A test set at one step of getting worse."""

    name: str
    """As ``jpeg-40``, ``h264-crf40``."""
    value: float
    """Its place on the axis."""
    estimates: tuple[Estimate, ...]
    """Video AUROC of each checkpoint."""
    lacking: int = 0
    """Frames of the base that are not there, as their videos could not be re-compressed."""


@dataclass(frozen=True)
class Worsening:
    """A curve: a test set from the mildest level to the strongest."""

    set: str
    name: str
    """``jpeg``, ``resize-lanczos``, ``h264``."""
    axis: str
    """What the levels are, with their unit."""
    clean: tuple[Estimate, ...]
    """Of the set as it is, by its plain evaluation; one a checkpoint."""
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Variant:
    """A test set of re-compressed videos."""

    set: str
    how: Recompression
    base: str | None
    """Test set of the same samples before; None where none is among the test sets."""
    lacking: int = 0
    """Frames that the base has and this set has not."""


def worsenings(result: Result) -> list[Worsening]:
    """All curves, by test set: those of corruptions, then those of video codecs."""
    of_codecs = variants(result.request.tests)
    return [
        curve
        for name in result.request.tests
        for curve in (*_corrupted(result, name), *_recompressed(result, name, of_codecs))
    ]


def variants(tests: Mapping[str, Index]) -> list[Variant]:
    """The test sets of re-compressed videos, each with its base."""
    datasets = {name: _dataset(index) for name, index in tests.items()}
    found = []
    for name, dataset in datasets.items():
        if (told := split_recompression(dataset)) is None:
            continue
        before, how = told
        bases = [other for other in tests if datasets[other] == before and _has(tests[other], tests[name])]
        base = bases[0] if bases else None
        lacking = len(tests[base]) - len(tests[name]) if base is not None else 0
        found.append(Variant(name, how, base, lacking))
    return found


def _dataset(index: Index) -> str:
    """Of all samples; empty where they are of several."""
    datasets = {video.split("/", 1)[0] for video in index.videos}
    return decode_part(datasets.pop()) if len(datasets) == 1 else ""


def _has(base: Index, variant: Index) -> bool:
    """Whether the samples of a variant are some of the base's, by their keys without the dataset."""
    own, others = (_tails(index) for index in (base, variant))
    return bool(pc.all(pc.is_in(others, value_set=own)).as_py())


def _tails(index: Index) -> pa.Array:
    return pc.replace_substring_regex(index.key_column, "^[^/]+/", "").combine_chunks()


def _corrupted(result: Result, name: str) -> Iterator[Worsening]:
    for curve in grid.curves(result.request.work.corruptions):
        levels = tuple(
            Level(
                each.name,
                each.level,
                tuple(found.robustness[name][each.name]["auroc"] for found in result.found),
            )
            for each in curve.corruptions
        )
        yield Worsening(name, curve.name, curve.axis, _plain(result, name), levels)


def _recompressed(result: Result, name: str, of_codecs: list[Variant]) -> Iterator[Worsening]:
    own = sorted((each for each in of_codecs if each.base == name), key=lambda each: each.how)
    for codec in dict.fromkeys(each.how.codec for each in own):
        levels = tuple(
            Level(str(each.how), each.how.crf, _plain(result, each.set), each.lacking)
            for each in own
            if each.how.codec == codec
        )
        yield Worsening(name, codec, AXIS, _plain(result, name), levels)


def _plain(result: Result, name: str) -> tuple[Estimate, ...]:
    return tuple(_auroc(found, name) for found in result.found)


def _auroc(found: Found, name: str) -> Estimate:
    return next(row for row in rows(found, "video") if row.set == name).metrics["auroc"]
