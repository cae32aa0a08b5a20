"""The tables of an evaluation's report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dfdet.evaluation import calibration
from dfdet.evaluation.bootstrap import Difference, Estimate
from dfdet.evaluation.comparison import Compared
from dfdet.evaluation.report import words
from dfdet.evaluation.report.facts import (
    METRICS,
    NONE,
    Case,
    interval_text,
    methods,
    number_text,
    rows,
    set_text,
    video_text,
)
from dfdet.evaluation.report.published_rows import PUBLISHED, TEST_SETS, matched
from dfdet.evaluation.report.robustness import Worsening
from dfdet.evaluation.request import key
from dfdet.evaluation.result import Result
from dfdet.evaluation.summary import Counts, Level, UndetectedAs
from dfdet.html.page import Cell, paragraph, table

SHOWN_UNDETECTED = 50
COMPARED = {name: METRICS[name] for name in ("auroc", "ap", "eer", "balanced_accuracy")}
SHORT = 12
"""Digits of a fingerprint that stand for it."""


def word(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, "word")


def estimate_cell(estimate: Estimate | None) -> Cell:
    """A metric with its interval below."""
    return Cell(number_text(estimate.value), note=interval_text(estimate)) if estimate else Cell(NONE)


def checkpoints(result: Result) -> str:
    """What was evaluated: the detectors."""
    head = ["checkpoint", "source", "backbone", "tuning", "faces", "fingerprint"]
    models = result.request.models
    body = (
        [
            word(model.label),
            Cell(model.source, "long"),
            Cell(words.backbone_text(model), "text"),
            word(words.tuning_text(model)),
            Cell(words.crop_text(model), "text"),
            word(model.fingerprint[:SHORT]),
        ]
        for model in models
    )
    return table(list(map(word, head)), (("", cells) for cells in body))


def sets(result: Result) -> str:
    """What was evaluated: the data."""
    head = [word("set"), word("used as"), *map(Cell, ("videos", "real", "fake", "undetected"))]
    head += [*map(Cell, ("frames", "not read", "methods")), word("fingerprint")]
    return table(head, (("", cells) for cells in _set_rows(result)))


def _set_rows(result: Result) -> Iterator[list[Cell]]:
    request, scores = result.request, result.scores
    first = request.models[0].label
    for split, indexes, scored in (("val", request.val, scores.val), ("test", request.tests, scores.tests)):
        for name, index in indexes.items():
            own = scored[first][name]
            video, place = np.unique(index.video, return_index=True)
            fakes = int(np.sum(index.label[place]))
            counts = (len(video), len(video) - fakes, fakes, len(own.undetected), len(index))
            skipped = scores.skipped[key("val" if split == "val" else "test", name)]
            used = "threshold" if split == "val" else "test"
            several = len({index.methods[code] for code in np.unique(index.method[index.label == 1])})
            numbers = map("{:,}".format, (*counts, skipped, several))
            yield [word(name), word(used), *map(Cell, numbers), word(index.digest[:SHORT])]


def summary(result: Result, level: Level, undetected: UndetectedAs = "excluded") -> str:
    """A row a test set and checkpoint, with sums over sets."""
    missing = words.unknown_metrics(result)
    names = {name: title for name, title in METRICS.items() if name not in missing}
    head = [word("test set"), word("checkpoint"), Cell(f"{level}s"), *map(Cell, names.values())]
    by_set = zip(*(rows(found, level, undetected) for found in result.found), strict=True)
    body = (
        (
            "first" if found is result.found[0] else "",
            [
                word(set_text(row.set)),
                word(found.model.label),
                Cell(f"{row.counts.reals + row.counts.fakes:,}", note=_classes(row.counts)),
                *(estimate_cell(row.metrics.get(name)) for name in names),
            ],
        )
        for same in by_set
        for found, row in zip(result.found, same, strict=True)
    )
    return table(head, body)


def _classes(counts: Counts) -> str:
    return f"{counts.reals:,} real, {counts.fakes:,} fake"


def has_undetected(result: Result) -> bool:
    """Whether a video of a test set has no score."""
    return any(row.counts.undetected for found in result.found for row in rows(found, "video"))


def published(result: Result) -> str:
    """Video-level AUROC in per cent beside that of papers, of sets that both have."""
    columns = matched(result.request.tests)
    keys = set(columns.values())
    titles = (f"{name} ({TEST_SETS[key]})" for name, key in columns.items())
    head = [word("detector"), *map(Cell, titles), word("source")]
    body: list[tuple[str, list[Cell]]] = []
    for found in result.found:
        own = {row.set: row.metrics["auroc"] for row in rows(found, "video")}
        cells = [Cell(percent_text(own[name]), note=_percent_bounds(own[name])) for name in columns]
        body.append(("", [word(found.model.label), *cells, word("this evaluation")]))
    for row in PUBLISHED:
        if keys & row.auroc.keys():
            cells = [Cell(f"{row.auroc[key]:.2f}" if key in row.auroc else NONE) for key in columns.values()]
            body.append(("published", [word(f"{row.method}, published"), *cells, word(row.source)]))
    return table(head, body)


def no_published() -> str:
    """The sentence in place of published rows."""
    known = ", ".join(TEST_SETS.values())
    return f"No published results beside these: no test set is named as one of {known}."


def percent_text(estimate: Estimate) -> str:
    """A metric in per cent."""
    return NONE if estimate.value is None else f"{100 * estimate.value:.2f}"


def _percent_bounds(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


METHOD_METRICS = ("auroc", "ap", "eer", "tpr_at_fpr_5e-2", "balanced_accuracy")


def by_method(result: Result) -> str:
    """Each method's fakes against all reals of its set; several checkpoints side by side."""
    alone = len(result.found) == 1
    columns = [(found, name) for found in result.found for name in (METHOD_METRICS if alone else ("auroc",))]
    titles = [METRICS[name] if alone else f"AUROC {found.model.label}" for found, name in columns]
    head = [word("test set"), word("method"), Cell("fakes"), Cell("reals"), *map(Cell, titles)]
    body = []
    for name in result.request.tests:
        tables = [methods(found, name) for found in result.found]
        at = {id(found): table_ for found, table_ in zip(result.found, tables, strict=True)}
        for method, row in tables[0].items():
            counts = Cell(f"{row.counts.fakes:,}"), Cell(f"{row.counts.reals:,}")
            cells = [estimate_cell(at[id(found)][method].metrics.get(metric)) for found, metric in columns]
            body.append(("", [word(name), word(method), *counts, *cells]))
    return table(head, body) if body else ""


def compared(pairs: Iterable[Compared]) -> str:
    """Differences of pairs of checkpoints with intervals and p-values."""
    head = [word("test set"), word("difference"), *map(Cell, COMPARED.values())]
    body = (
        (
            "",
            [
                word(set_text(each.set)),
                word(f"{each.first} - {each.second}"),
                *(_difference_cell(each.metrics[name]) for name in COMPARED),
            ],
        )
        for each in pairs
    )
    return table(head, body)


def _difference_cell(gap: Difference) -> Cell:
    if gap.value is None:
        return Cell(NONE)
    if gap.low is None or gap.high is None or gap.p is None:
        return Cell(f"{gap.value:+.4f}")
    apart = "number apart" if gap.low > 0 or gap.high < 0 else "number"
    return Cell(f"{gap.value:+.4f}", apart, f"{gap.low:+.3f} to {gap.high:+.3f}, p = {gap.p:.2g}")


def robust(result: Result, drawn: Iterable[Worsening]) -> str:
    """Video AUROC at each level of the curves, a column a checkpoint."""
    head = [word("test set"), word("made worse by"), *(Cell(found.model.label) for found in result.found)]
    body: list[tuple[str, list[Cell]]] = []
    told: set[str] = set()
    for curve in drawn:
        if curve.set not in told:
            told.add(curve.set)
            body.append(("first", [word(curve.set), word("none"), *map(estimate_cell, curve.clean)]))
        for level in curve.levels:
            lacking = f"{level.lacking:,} frames lacking" if level.lacking else ""
            how = Cell(level.name, "word", lacking)
            body.append(("", [word(curve.set), how, *map(estimate_cell, level.estimates)]))
    return table(head, body)


MEASURES = {"brier": "Brier score", "log_loss": "log loss", "ece": "ECE", "ece_width": "ECE, equal widths"}


def calibrated(cases: dict[str, list[Case]]) -> str:
    """Measures of calibration before and after the temperature."""
    head = [word("test set"), word("checkpoint"), word("level"), Cell("temperature")]
    head += [Cell(f"{title}, {when}") for title in MEASURES.values() for when in ("before", "after")]
    body = []
    for same in cases.values():
        for case in same:
            if (measured := case.found.calibration.get(case.name)) is None:
                continue
            for level in ("video", "frame"):
                pair: tuple[calibration.Calibration, ...] = getattr(measured, level)
                numbers = [Cell(number_text(each.flat()[name])) for name in MEASURES for each in pair]
                first = [word(case.name), word(case.label), word(level)]
                body.append(("", [*first, Cell(f"{measured.temperature:.3f}"), *numbers]))
    return table(head, body) if body else ""


def undetected(result: Result) -> str:
    """Videos without a score, with reasons."""
    first = result.request.models[0].label
    lost = [(name, each) for name, own in result.scores.tests[first].items() for each in own.undetected]
    if not lost:
        return paragraph("Every video of the test sets has a score.", "muted")
    head = [word("test set"), word("video"), word("truth"), Cell("reason", "long")]
    body = (
        ("", [word(name), Cell(video_text(each.video), "long"), word(each.method), Cell(each.reason, "long")])
        for name, each in lost[:SHOWN_UNDETECTED]
    )
    text = (
        f"{len(lost):,} videos have no score: no face was found, or no frame could be read. They are left out"
        " of the metrics, or counted at .5 where that is said."
    )
    more = len(lost) - SHOWN_UNDETECTED
    rest = paragraph(f"And {more:,} more.", "muted") if more > 0 else ""
    return paragraph(text, "muted") + table(head, body) + rest


def fingerprints(result: Result) -> str:
    """SHA-256 of checkpoints and sets, whole."""
    request = result.request
    rows_ = [("checkpoint", model.label, model.fingerprint) for model in request.models]
    rows_ += [("validation set", name, index.digest) for name, index in request.val.items()]
    rows_ += [("test set", name, index.digest) for name, index in request.tests.items()]
    return table([word("what"), word("name"), word("SHA-256")], (("", list(map(word, row))) for row in rows_))
