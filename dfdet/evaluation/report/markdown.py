"""The summary of an evaluation as Markdown, for a README or a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dfdet.evaluation.bootstrap import Estimate
from dfdet.evaluation.report import tables, words
from dfdet.evaluation.report.facts import METRICS, interval_text, number_text, rows, set_text
from dfdet.evaluation.report.published_rows import PUBLISHED, TEST_SETS, matched
from dfdet.evaluation.result import Result
from dfdet.evaluation.summary import Level
from dfdet.runs.atomic import write_bytes_atomic

_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|~"} | {"<": "&lt;", "&": "&amp;"}
)


def write_markdown(path: Path, result: Result) -> None:
    """Writes the summary, the published rows beside it, and what it was made of.

    Raises:
        OSError: The file cannot be written; an old one is intact.
    """
    write_bytes_atomic(path, (markdown(result) + "\n").encode())


def markdown(result: Result) -> str:
    """The text."""
    parts = [f"# {text(words.title(result))}"]
    parts.append(_list(words.finding(found) for found in result.found))
    parts.append(_list(words.threshold_sentences(result)))
    parts += ["## Video level", text(words.scoring_sentence(result)), _summary(result, "video")]
    parts += ["## Frame level", _summary(result, "frame")]
    parts += ["## Beside published results", _published(result)]
    parts += ["## Provenance", _models(result), _sets(result), text(words.written())]
    return "\n\n".join(parts)


def text(plain: str) -> str:
    """Escaped: what is no markup, on one line."""
    return " ".join(plain.split()).translate(_SPECIAL)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {text(line)}" for line in lines)


def _table(head: Sequence[str], body: Iterable[Sequence[str]], words_first: int) -> str:
    """Cells must be escaped; all but the first columns are numbers."""
    ruler = [":--" if place < words_first else "--:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *body))


def _summary(result: Result, level: Level) -> str:
    missing = words.unknown_metrics(result)
    names = {name: title for name, title in METRICS.items() if name not in missing}
    body = [
        [
            text(set_text(row.set)),
            text(found.model.label),
            f"{row.counts.reals + row.counts.fakes:,}",
            *(_estimate(row.metrics.get(name)) for name in names),
        ]
        for same in zip(*(rows(found, level) for found in result.found), strict=True)
        for found, row in zip(result.found, same, strict=True)
    ]
    return _table(["test set", "checkpoint", f"{level}s", *names.values()], body, 2)


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    bounds = interval_text(estimate)
    return number_text(estimate.value) + (f" ({bounds})" if bounds else "")


def _published(result: Result) -> str:
    columns = matched(result.request.tests)
    if not columns:
        return text(tables.no_published())
    body = []
    for found in result.found:
        own = {row.set: row.metrics["auroc"] for row in rows(found, "video")}
        cells = [tables.percent_text(own[name]) for name in columns]
        body.append([text(found.model.label), "this evaluation", *cells])
    for row in PUBLISHED:
        if row.auroc.keys() & set(columns.values()):
            cells = [f"{row.auroc[key]:.2f}" if key in row.auroc else "-" for key in columns.values()]
            body.append([f"{row.method}, published", row.source, *cells])
    titles = [f"{text(name)} ({TEST_SETS[key]})" for name, key in columns.items()]
    said = "Video-level AUROC in per cent; published figures are their authors', trained on FF++ c23."
    return f"{said}\n\n" + _table(["detector", "source", *titles], body, 2)


def _models(result: Result) -> str:
    head = ["checkpoint", "source", "backbone", "tuning", "faces", "SHA-256 of its tensors"]
    body = [
        [
            text(model.label),
            text(model.source),
            text(words.backbone_text(model)),
            text(words.tuning_text(model)),
            text(words.crop_text(model)),
            model.fingerprint,
        ]
        for model in result.request.models
    ]
    return _table(head, body, len(head))


def _sets(result: Result) -> str:
    first = result.request.models[0].label
    body = []
    for used, indexes, scored in (
        ("threshold", result.request.val, result.scores.val),
        ("test", result.request.tests, result.scores.tests),
    ):
        for name, index in indexes.items():
            lost = len(scored[first][name].undetected)
            body.append(
                [text(name), used, index.digest, f"{len(index.videos):,}", f"{len(index):,}", f"{lost:,}"]
            )
    head = ["set", "used as", "SHA-256 of its indexes", "videos", "frames", "undetected"]
    return _table(head, body, 3)
