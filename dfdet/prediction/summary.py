"""Predictions on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from rich.table import Table
from rich.text import Text

from dfdet.prediction.records import Prediction

_COLOURS = {"fake": "red", "real": "green"}


def table(records: Iterable[Prediction]) -> Table:
    """A row a file."""
    shown = Table("file", "verdict", "score", "probability", "faces", "frames", "remark")
    for record in records:
        numbers = ("" if value is None else f"{value:.4f}" for value in (record.score, record.probability))
        said = _said(record)
        shown.add_row(
            Text(_printable(PurePath(record.path).name)),
            Text(said, style=_COLOURS.get(said, "yellow")),
            *numbers,
            str(len(record.faces) or ""),
            str(len(record.frames) or ""),
            Text(_printable(record.reason or "")),
        )
    return shown


def counts(records: Iterable[Prediction]) -> str:
    """How many files were called what."""
    found = Counter(map(_said, records))
    return f"{found.total()} files: " + ", ".join(f"{count} {said}" for said, count in sorted(found.items()))


def _said(record: Prediction) -> str:
    return record.verdict or ("no verdict" if record.status == "ok" else record.status)


def _printable(text: str) -> str:
    """Control characters, which would break a line or a terminal, are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
