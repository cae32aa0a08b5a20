"""What a prediction says, as JSON; and the way from the scores of frames to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dfdet.data.decode import Pixels
from dfdet.prediction.verdict import Rule, Said, judge
from dfdet.serving.content import Kind
from dfdet.serving.graph import Scored
from dfdet.serving.refused import RefusedError

Status = Literal["ok", "no face", "damaged"]
Box = tuple[float, float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Problem(_Record):
    """Why there is no answer."""

    code: str
    """One word for programs."""
    message: str


class ErrorAnswer(_Record):
    """The body of every answer that is not a prediction."""

    error: Problem
    request_id: str | None = None


class Frame(_Record):
    """A scored face in a frame."""

    face: int
    """Which of the file's faces."""
    frame: int
    """Its place in the video, from 0."""
    time_s: float | None
    """Time from the first frame (s); null where the file does not tell, and for images."""
    box: Box | None
    """x0, y0, x1, y1 in pixels of the upright frame; null for ready crops."""
    score: float
    """Fake probability (0 to 1), before any temperature."""
    logit: float
    """Fake minus real logit."""
    thumbnail: str | None = None
    """Data URL of what the model saw, shrunk; where asked for."""


class Face(_Record):
    """A person of the file, followed through its frames."""

    face: int
    frames: int
    """Frames that were scored."""
    score: float
    """Of the frames, aggregated (0 to 1)."""
    probability: float | None
    """Of the frames' calibrated probabilities, aggregated; null without a temperature."""
    verdict: Said | None


class FileAnswer(_Record):
    """What is said of a file."""

    status: Status
    kind: Kind | None = None
    reason: str | None = None
    """Why there is no score, or what was lost on the way to it."""
    error: Problem | None = None
    """Of a damaged file."""
    verdict: Said | None = None
    """null without a threshold."""
    score: float | None = None
    """Of the frames, aggregated (0 to 1); with several faces the highest of theirs."""
    probability: float | None = None
    """As ``score``, of calibrated probabilities."""
    frames_read: int = 0
    faces: tuple[Face, ...] = ()
    frames: tuple[Frame, ...] = ()


class ModelFacts(_Record):
    """Which model answered."""

    name: str
    fingerprint: str
    """SHA-256 of the model's tensors."""
    precision: str


class Answer(_Record):
    """What is said of a request's files, in their order."""

    request_id: str
    model: ModelFacts
    threshold: float | None
    """``score >= threshold`` says fake."""
    threshold_origin: str
    """Where the threshold comes from, in words."""
    temperature: float | None
    aggregate: str
    """How the score came from those of the frames."""
    files: tuple[FileAnswer, ...]


@dataclass(frozen=True)
class Asked:
    """What a client asks of each file."""

    frames: int = 32
    """Frames of a video, spread evenly."""
    everyone: bool = False
    """Every person, rather than the one that the recipe selects."""
    ready: bool = False
    """Files are crops already."""
    thumbnails: bool = False


@dataclass(frozen=True)
class FoundFace:
    """A face in a frame, cut for the model."""

    face: int
    frame: int
    time_s: float | None
    box: Box | None
    crop: Pixels
    thumbnail: str | None = None


@dataclass(frozen=True)
class FoundFaces:
    """The faces of a file."""

    kind: Kind
    frames_read: int
    reason: str | None
    faces: list[FoundFace] = field(default_factory=list)


def damaged(refused: RefusedError) -> FileAnswer:
    """What is said of a file that cannot be scored."""
    problem = Problem(code=refused.code, message=refused.message)
    return FileAnswer(status="damaged", reason=refused.message, error=problem)


def judged(found: FoundFaces, scored: Sequence[Scored], rule: Rule, aggregate: str) -> FileAnswer:
    """What is said of a file, as ``predict.py`` says it.

    Args:
        found: Its faces.
        scored: What the model says of each.
        rule: Of the bundle.
        aggregate: Score of a person from those of the frames.
    """
    about = {"kind": found.kind, "reason": found.reason, "frames_read": found.frames_read}
    if not found.faces:
        return FileAnswer(status="no face", **about)
    frames = tuple(map(_frame, found.faces, scored))
    faces = tuple(_face(number, frames, rule, aggregate) for number in sorted({each.face for each in frames}))
    worst = max(faces, key=lambda face: face.score)
    return FileAnswer(
        status="ok",
        verdict=worst.verdict,
        score=worst.score,
        probability=worst.probability,
        faces=faces,
        frames=frames,
        **about,
    )


def _frame(face: FoundFace, scored: Scored) -> Frame:
    return Frame(
        face=face.face,
        frame=face.frame,
        time_s=face.time_s,
        box=face.box,
        score=scored.score,
        logit=scored.logit,
        thumbnail=face.thumbnail,
    )


def _face(number: int, frames: Sequence[Frame], rule: Rule, aggregate: str) -> Face:
    own = [each for each in frames if each.face == number]
    said = judge([each.score for each in own], [each.logit for each in own], rule, aggregate)
    return Face(face=number, frames=len(own), **vars(said))
