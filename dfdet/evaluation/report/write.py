"""``report.html``: what an evaluation found, in one file that is kept and needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from dfdet.evaluation.report import figures, tables, words
from dfdet.evaluation.report.facts import Case, cases, headline
from dfdet.evaluation.report.mistakes import Pictures, gallery, shown_each
from dfdet.evaluation.report.published_rows import matched
from dfdet.evaluation.report.robustness import AXIS, variants, worsenings
from dfdet.evaluation.result import Result
from dfdet.html.page import code, folded, grid, page, paragraph, plot, section
from dfdet.runs.atomic import write_bytes_atomic

MANY = 12
"""Pictures of a kind above which those of a set are folded away."""

RECOMPRESSED = (
    " By crf: whole videos were compressed anew by a codec, and the same faces cut at the same places; a"
    " higher rate factor is a stronger compression."
)

Cases = dict[str, list[Case]]
Boxes = list[tuple[str, str]]


def write_report(path: Path, result: Result) -> None:
    """Writes the page, whole.

    Pictures of faces are read from the test sets; of one that cannot be read there is a sentence instead.

    Raises:
        OSError: The file cannot be written; an old one is intact.
    """
    write_bytes_atomic(path, page(words.title(result), _sections(result)).encode())


def _sections(result: Result) -> Iterator[str]:
    of_sets = cases(result)
    yield _head(result)
    yield _summary(result)
    yield _published(result)
    yield _compared(result)
    yield _by_method(result)
    yield _curves(result, of_sets)
    yield _histograms(result, of_sets)
    yield _robustness(result)
    yield _calibration(of_sets)
    yield _mistakes(of_sets)
    yield section("Undetected videos", tables.undetected(result))
    yield _provenance(result)
    yield f"<footer>{escape(words.written())}</footer>"


def _head(result: Result) -> str:
    lines = [paragraph(words.finding(found)) for found in result.found]
    lines += [paragraph(text, "muted") for text in words.threshold_sentences(result)]
    return "\n".join(
        (
            f"<h1>{escape(words.title(result))}</h1>",
            paragraph(words.written(), "muted"),
            f'<div class="verdict">{"".join(lines)}</div>',
            section("What was evaluated", tables.checkpoints(result), tables.sets(result)),
        )
    )


def _summary(result: Result) -> str:
    parts = [paragraph(words.scoring_sentence(result), "muted"), tables.summary(result, "video")]
    if tables.has_undetected(result):
        title = "Video level, undetected videos at .5"
        parts.append(folded(title, tables.summary(result, "video", "half")))
    parts.append(folded("Frame level", tables.summary(result, "frame")))
    return section("Results, video level", *parts)


def _published(result: Result) -> str:
    title = "Beside published results"
    if not matched(result.request.tests):
        return section(title, paragraph(tables.no_published(), "muted"))
    text = (
        "Video-level AUROC in per cent. Published figures are their authors', of detectors trained on"
        " FaceForensics++ c23; the faces, frames and videos that they were measured on may differ."
    )
    return section(title, paragraph(text, "muted"), tables.published(result))


def _compared(result: Result) -> str:
    if not result.compared:
        return ""
    text = (
        "The first checkpoint less the second on the same videos, resampled together; p is two-sided, of a"
        " single test: of many, some are small by chance. Bold: the interval leaves out 0."
    )
    main = headline(result.found[0]).set
    shown = [each for each in result.compared if each.set == main]
    rest = [each for each in result.compared if each.set != main]
    more = folded("Each test set, and all pooled", tables.compared(rest)) if rest else ""
    return section("Checkpoints compared", paragraph(text, "muted"), tables.compared(shown), more)


def _by_method(result: Result) -> str:
    table = tables.by_method(result)
    text = "The fakes of each forgery method against all reals of the set, video level."
    return section("By method", paragraph(text, "muted"), table) if table else ""


def _curves(result: Result, of_sets: Cases) -> str:
    parts = []
    for name, same in of_sets.items():
        drawn = (
            (f"{name}: ROC", figures.roc(same, log=False)),
            (f"{name}: ROC at few false alarms", figures.roc(same, log=True)),
            (f"{name}: precision and recall", figures.precision_recall(same)),
        )
        boxes = [(title, plot(figure)) for title, figure in drawn if figure]
        parts.append(grid(boxes) if boxes else paragraph(f"{name} has one class only: no curves.", "muted"))
    marks = any(case.threshold is not None for same in of_sets.values() for case in same)
    text = "Video level. Dotted: chance." + " A mark: the threshold that is carried here." * marks
    return section("ROC, precision and recall", paragraph(text, "muted"), figures.key(result.found), *parts)


def _histograms(result: Result, of_sets: Cases) -> str:
    text = (
        "Share of the videos in each bin of the score (logarithmic): grey the reals, in colour the fakes of a"
        " method. Dashed red: the threshold."
    )
    boxes = {
        name: [(_title(case), plot(figures.histograms(case))) for case in same]
        for name, same in of_sets.items()
    }
    return section("Scores by method", paragraph(text, "muted"), figures.key(result.found), _grids(boxes))


def _title(case: Case) -> str:
    return f"{case.name}: {case.label}"


def _grids(boxes: dict[str, Boxes]) -> str:
    """All beside each other; where they are many, folded by set."""
    every = [box for same in boxes.values() for box in same]
    if len(every) <= MANY:
        return grid(every)
    return "\n".join(folded(name, grid(same)) for name, same in boxes.items() if same)


def _robustness(result: Result) -> str:
    drawn = worsenings(result)
    alone = [each.set for each in variants(result.request.tests) if each.base is None]
    if not drawn and not alone:
        return ""
    text = (
        "Video AUROC on crops that were made worse, from the mildest level to the strongest, with intervals;"
        " dashed, with open marks: on the crops as they are."
    )
    text += RECOMPRESSED * any(curve.axis == AXIS for curve in drawn)
    parts = [paragraph(text, "muted"), figures.key(result.found)]
    boxes: dict[str, Boxes] = {}
    for curve in drawn:
        box = (f"{curve.set}: {curve.name}", plot(figures.robustness(result.found, curve)))
        boxes.setdefault(curve.set, []).append(box)
    if drawn:
        parts += [_grids(boxes), folded("The numbers", tables.robust(result, drawn))]
    if alone:
        lost = (
            f"Re-compressed, without the same samples as they were among the test sets: {', '.join(alone)}."
        )
        parts.append(paragraph(lost, "muted"))
    return section("Robustness", *parts)


def _calibration(of_sets: Cases) -> str:
    table = tables.calibrated(of_sets)
    if not table:
        return ""
    boxes: dict[str, Boxes] = {name: [] for name in of_sets}
    for case in (case for same in of_sets.values() for case in same):
        if measured := case.found.calibration.get(case.name):
            boxes[case.name].append((_title(case), plot(figures.reliability(case, *measured.video))))
    text = (
        "How far scores can be taken as probabilities, before and after the temperature that was fitted with"
        " the threshold, in bins of equally many videos; lower is better; points on the diagonal are right."
    )
    return section("Calibration", paragraph(text, "muted"), _grids(boxes), table)


def _mistakes(of_sets: Cases) -> str:
    every = [case for same in of_sets.values() for case in same]
    most = shown_each(len(every))
    text = (
        f"Up to {most} videos of each kind, by the frame whose score is nearest the video's, cut as the"
        " checkpoint saw it."
    )
    return section("Worst mistakes", paragraph(text, "muted"), *_galleries(of_sets.values(), most))


def _galleries(of_sets: Iterable[list[Case]], most: int) -> Iterator[str]:
    for same in of_sets:
        pictures = Pictures(same[0].index)
        try:
            for case in same:
                yield folded(_title(case), gallery(case, pictures, most), opened=case.place == 0)
        finally:
            pictures.close()


def _provenance(result: Result) -> str:
    texts = [folded(title, code(text)) for title, text in words.configuration(result).items()]
    return section("Configuration and fingerprints", tables.fingerprints(result), *texts)
