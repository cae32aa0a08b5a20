"""What one case of ``benchmarks/kills.py`` came to, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """A run that was killed, went on, and was compared with an uninterrupted one."""

    number: int
    """Of the case; with the seed it gives the same kills again."""
    kind: str
    """What was killed."""
    moment: str
    """What the run was doing at its first kill."""
    kills: int
    """How often it was killed (times)."""
    equal: bool
    """Whether batches, losses, weights, metrics and files are those of the uninterrupted run."""
    detail: str
    """The first difference; empty where there is none."""
    seconds: float
    """How long the case took (seconds)."""


def kept(record: Path | None) -> list[Outcome]:
    """Outcomes that an earlier run of the script has written."""
    if record is None or not record.exists():
        return []
    return [Outcome(**json.loads(line)) for line in record.read_text().splitlines()]


def keeping(outcomes: Iterator[Outcome], record: Path | None) -> Iterator[Outcome]:
    """The outcomes, each written as it comes."""
    for outcome in outcomes:
        if record is not None:
            with record.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        yield outcome
