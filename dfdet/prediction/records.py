"""What prediction writes: a line of JSON a file, a table, and how an interrupted run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dfdet.checkpoints.checkpoint_format import read_json
from dfdet.errors import InputError
from dfdet.prediction.verdict import Said
from dfdet.runs.atomic import write_bytes_atomic, write_json_atomic
from dfdet.runs.linelog import LineLog
from dfdet.runs.ownership import Ownership
from dfdet.schema import CropRecipe

LINES, TABLE, OPTIONS = "predictions.jsonl", "predictions.csv", "options.json"
COLUMNS = (
    *("path", "kind", "status", "verdict", "score", "probability"),
    *("threshold", "aggregate", "faces", "frames", "reason"),
)
Status = Literal["ok", "no face", "damaged"]
Box = tuple[float, float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="null"
    )


class Frame(_Record):
    """A scored frame, or rather a face in it."""

    face: int
    """Which of the file's faces."""
    frame: int
    """Its place in the video, from 0."""
    time_s: float | None
    """Time from the first frame (s); None where the file does not tell, and for images."""
    box: Box | None
    """x0, y0, x1, y1 in pixels of the upright frame; None for ready crops."""
    score: float
    """Fake probability (0 to 1), before any temperature."""
    logit: float
    """Fake minus real logit."""


class Face(_Record):
    """A person of the file, followed through its frames."""

    face: int
    frames: int
    """Frames that were scored."""
    score: float
    """Of the frames, aggregated (0 to 1)."""
    probability: float | None
    """Of the frames' calibrated probabilities, aggregated; None without a temperature."""
    verdict: Said | None


class Prediction(_Record):
    """What is said of a file."""

    path: str
    """Absolute; bytes that are no UTF-8 are escaped."""
    kind: Literal["video", "image"]
    bytes: int
    """Size of the file; 0 where it cannot be looked at."""
    modified_ns: int
    """Its time of modification (ns)."""
    status: Status
    reason: str | None = None
    """Why there is no score, or what was lost on the way to it."""
    score: float | None = None
    """Of the frames, aggregated (0 to 1); with several faces the highest of theirs."""
    probability: float | None = None
    """As ``score``, of calibrated probabilities."""
    verdict: Said | None = None
    aggregate: str
    """How the score came from those of the frames."""
    threshold: float | None
    threshold_origin: str
    temperature: float | None
    checkpoint: str
    """As the user named it."""
    fingerprint: str
    """SHA-256 of the model."""
    crop: CropRecipe
    """How the faces were cut here."""
    crop_scale: float
    """Margin that the model saw, as a multiple of the tight face."""
    frames_read: int = 0
    faces: tuple[Face, ...] = ()
    frames: tuple[Frame, ...] = ()
    pictures: tuple[str, ...] = ()
    """Files beside this one."""


@contextmanager
def claimed(path: Path | None) -> Iterator[None]:
    """Keeps other processes out of a folder of results, made if missing; None keeps nobody out.

    Raises:
        InputError: Another process writes to it, or it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        ownership = Ownership.take(path, "--out")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        ownership.release()


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"--out {path}: cannot be written ({error.strerror}); give another")


class Folder:
    """Results in a folder: those that are there already are kept, and new ones added as they come.

    Args:
        path: Made if missing.
        options: All that a result depends on. A folder begun with others is refused.

    Raises:
        InputError: The folder holds results of other options or another checkpoint, is no folder, or
            cannot be written.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._claim(dict(options))
        except OSError as error:
            raise _unwritable(path, error) from error
        self._log = LineLog(path / LINES)
        self.done = {record.path: record for record in _read(path / LINES)}
        """Results by path."""

    def _claim(self, options: dict[str, Any]) -> None:
        file = self.path / OPTIONS
        if file.exists():
            refuse_other(read_json(file), options, self.path)
        elif (self.path / LINES).exists():
            raise InputError(f"--out {self.path}: holds {LINES} without {OPTIONS}; give another folder")
        else:
            write_json_atomic(file, options)

    def has(self, path: str, size: int, modified_ns: int) -> bool:
        """Whether a file has a result that still holds: the same path, size and time."""
        found = self.done.get(path)
        return found is not None and (found.bytes, found.modified_ns) == (size, modified_ns)

    def add(self, record: Prediction) -> None:
        """Adds a line, whole or not at all."""
        self.done[record.path] = record
        self._log.append(record.model_dump_json())

    def close(self, order: Sequence[str]) -> list[Prediction]:
        """Writes lines and table in the order of the input, results of earlier inputs after them.

        Returns:
            The results of the input.
        """
        self._log.flush()
        asked = [self.done[path] for path in order if path in self.done]
        given = set(order)
        records = asked + [record for path, record in self.done.items() if path not in given]
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        write_bytes_atomic(self.path / LINES, lines.encode())
        write_bytes_atomic(self.path / TABLE, as_csv(records).encode())
        return asked


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuses to mix results that do not belong together.

    Raises:
        InputError: With the first difference.
    """
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise InputError(
                f"--out {folder}: holds results of {name}={before.get(name)}, now it is {now.get(name)};"
                " give another folder"
            )


def as_csv(records: Iterable[Prediction]) -> str:
    """A row a file, with the numbers at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        counts = {"faces": len(record.faces), "frames": len(record.frames)}
        row = {name: getattr(record, name) for name in COLUMNS} | counts
        writer.writerow(["" if row[name] is None else row[name] for name in COLUMNS])
    return buffer.getvalue()


def _read(path: Path) -> list[Prediction]:
    """Whole lines of an earlier run; one cut short by a kill is passed over, and made again."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        return [Prediction.model_validate_json(line) for line in whole.splitlines() if line]
    except ValidationError as error:
        raise InputError(
            f"{path}: is not of this version ({error.errors()[0]['msg']}); give another folder"
        ) from error
