"""One file -> its record and pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.errors import DfdetError, InputError, WeightsError
from dfdet.prediction.film import marks_between, write_film
from dfdet.prediction.pictures import Marked, Tile, annotated, contact_sheet
from dfdet.prediction.records import Face, Frame, Prediction, Status
from dfdet.prediction.score import FaceScores, Scorer, Seen
from dfdet.prediction.verdict import Rule, judge
from ray_jobs.own_faces import Finder, Found, Looking
from ray_jobs.own_files import Target
from shards.detect import DetectorOptions, open_detector
from shards.media.stream import UnusableVideoError
from shards.media.video import VideoFile

logger = logging.getLogger(__name__)

SHEET_FACES = 96
"""Faces of a file on its sheet: twelve rows."""
HEAT_FACES = 8
"""Faces of a file with a heat map, those of highest score: a map costs about 50 forward passes."""


@dataclass(frozen=True)
class Ask:
    """All that a process needs to predict; picklable."""

    checkpoint: str
    pretrained: str | None
    fingerprint: str
    """Of the model that the driver opened."""
    device: str
    """Of the model: ``cpu`` or ``cuda``."""
    threads: int
    """CPU threads of the model; 0: as torch has it."""
    looking: Looking
    detector: DetectorOptions | None
    aggregate: str
    rule: Rule
    crop_scale: float
    out: Path | None = None
    sheet: bool = False
    video: bool = False
    heatmap: bool = False


class Predictor:
    """Predicts file by file; the checkpoint and the detector are opened once.

    Args:
        ask: What is asked.
        opened: The checkpoint, where this process has it open already.

    Raises:
        WeightsError: This machine has another checkpoint or detector than the driver.
    """

    def __init__(self, ask: Ask, opened: Opened | None = None) -> None:
        self.ask = ask
        if ask.detector and not Path(str(ask.detector.weights)).is_file():
            raise InputError(
                f"--weights {ask.detector.weights}: not on this machine; give all machines the same"
            )
        finder = open_detector(ask.detector) if ask.detector else None
        if ask.threads:
            torch.set_num_threads(ask.threads)
        opened = opened or open_checkpoint(ask.checkpoint, device=ask.device, pretrained=ask.pretrained)
        if opened.fingerprint != ask.fingerprint:
            raise WeightsError(f"--checkpoint {ask.checkpoint}: this machine has another one of that name")
        self.find = Finder(ask.looking, finder)
        self.score = Scorer(opened, ask.looking.recipe.scale)

    def __call__(self, target: Target) -> Prediction:
        """What is said of a file; whatever is wrong with it stands in the record.

        Raises:
            DfdetError: Not the file's fault: the detector, the model, the storage.
        """
        try:
            found = self.find(target)
        except UnusableVideoError as error:
            return damaged(self.ask, target, str(error))
        except DfdetError:
            raise
        except MemoryError:
            return damaged(self.ask, target, "does not fit into memory")
        except Exception as error:
            logger.debug("%s", target.path, exc_info=True)
            told = " ".join(str(error).split())[:200]
            return damaged(self.ask, target, f"unexpected {type(error).__name__}: {told}")
        if not found.seen:
            return _record(self.ask, target, "no face", found.reason, frames_read=len(found.positions))
        faces, frames = (np.array([getattr(each, name) for each in found.seen]) for name in ("face", "frame"))
        scores = self.score([each.crop for each in found.seen], Seen(faces, frames))
        return self._judged(target, found, scores)

    def _judged(self, target: Target, found: Found, scores: FaceScores) -> Prediction:
        frames = tuple(
            Frame(
                face=seen.face,
                frame=seen.frame,
                time_s=seen.time_s,
                box=seen.box,
                score=float(score),
                logit=float(logit),
            )
            for seen, score, logit in zip(found.seen, scores.scores, scores.logits, strict=True)
        )
        judged = scores.for_aggregate(self.ask.aggregate)
        faces = tuple(self._face(number, frames, judged) for number in sorted({each.face for each in frames}))
        worst = max(faces, key=lambda face: face.score)
        record = _record(
            self.ask,
            target,
            "ok",
            found.reason,
            score=worst.score,
            probability=worst.probability,
            verdict=worst.verdict,
            frames_read=found.read,
            faces=faces,
            frames=frames,
        )
        return record.model_copy(update={"pictures": tuple(self._pictures(target, found, record))})

    def _face(self, number: int, frames: Sequence[Frame], judged: FaceScores) -> Face:
        own = [place for place, each in enumerate(frames) if each.face == number]
        said = judge(judged.scores[own], judged.logits[own], self.ask.rule, self.ask.aggregate)
        return Face(face=number, frames=len(own), **vars(said))

    def _pictures(self, target: Target, found: Found, record: Prediction) -> list[str]:
        ask = self.ask
        made: list[str] = []
        if ask.out is None:
            return made
        try:
            if ask.sheet:
                made.append(f"{target.stem}-sheet.png")
                self._sheet(ask.out / made[-1], found, record)
            if ask.heatmap:
                made.append(f"{target.stem}-heat.png")
                self._heat(ask.out / made[-1], found, record)
            if ask.video and target.kind == "video":
                made.append(f"{target.stem}.mp4")
                _film(ask.out / made[-1], target, found, record)
        except OSError as error:
            raise DfdetError(f"--out {ask.out}: cannot be written ({error.strerror})") from error
        return made

    def _sheet(self, path: Path, found: Found, record: Prediction) -> None:
        top = max(record.frames, key=lambda each: each.score)
        frame = None
        if top.frame in found.thumbnails and top.box is not None:
            image, ratio = found.thumbnails[top.frame]
            marks = [_mark(each, ratio) for each in record.frames if each.frame == top.frame]
            frame = annotated(image, marks)
        tiles = [
            Tile(self.score.cut(seen.crop), each.score, _caption(each, len(record.faces)))
            for seen, each in list(zip(found.seen, record.frames, strict=True))[:SHEET_FACES]
        ]
        hidden = len(record.frames) - len(tiles)
        more = [f"{hidden} more faces are not shown"] if hidden else []
        contact_sheet(path, heading(record), details(record) + more, frame, tiles)

    def _heat(self, path: Path, found: Found, record: Prediction) -> None:
        order = np.argsort([-each.score for each in record.frames], kind="stable")[:HEAT_FACES]
        chosen = sorted(order.tolist())
        heats = self.score.evidence([found.seen[number].crop for number in chosen])
        tiles = [
            Tile(
                self.score.cut(found.seen[number].crop),
                record.frames[number].score,
                _caption(record.frames[number], len(record.faces)),
                heat,
            )
            for number, heat in zip(chosen, heats, strict=True)
        ]
        lines = [*details(record), "Red: speaks for fake. Blue: for real. One scale for all faces shown."]
        contact_sheet(path, heading(record), lines, None, tiles)


def damaged(ask: Ask, target: Target, reason: str) -> Prediction:
    """The record of a file that cannot be read."""
    return _record(ask, target, "damaged", reason)


def heading(record: Prediction) -> str:
    """What was said of a file, in a few words."""
    said = f"{(record.verdict or 'no verdict').upper()}: {Path(record.path).name}"
    score = "" if record.score is None else f"  score {record.score:.4f} ({record.aggregate})"
    probability = "" if record.probability is None else f", calibrated probability {record.probability:.4f}"
    return said + score + probability


def details(record: Prediction) -> list[str]:
    """Where the verdict comes from."""
    threshold = "none" if record.threshold is None else f"{record.threshold:.4f}"
    lines = [f"threshold {threshold} ({record.threshold_origin}); model {record.fingerprint[:12]}"]
    return lines + ([record.reason] if record.reason else [])


def _record(ask: Ask, target: Target, status: Status, reason: str | None, **more: Any) -> Prediction:
    return Prediction(
        path=target.name,
        kind=target.kind,
        bytes=target.bytes,
        modified_ns=target.modified_ns,
        status=status,
        reason=reason,
        aggregate=f"max over faces of {ask.aggregate}" if ask.looking.everyone else ask.aggregate,
        threshold=ask.rule.threshold,
        threshold_origin=ask.rule.origin,
        temperature=ask.rule.temperature,
        checkpoint=ask.checkpoint,
        fingerprint=ask.fingerprint,
        crop=ask.looking.recipe,
        crop_scale=ask.crop_scale,
        **more,
    )


def _film(path: Path, target: Target, found: Found, record: Prediction) -> None:
    marks = marks_between(record.frames, found.positions)
    line = heading(record)
    with VideoFile(target.path) as video:
        frames = (annotated(image, marks(n), line) for n, image in video.frames(range(video.length)))
        write_film(path, frames, found.fps or 25.0)


def _mark(frame: Frame, ratio: float) -> Marked:
    assert frame.box is not None
    x0, y0, x1, y1 = (side * ratio for side in frame.box)
    return Marked((x0, y0, x1, y1), frame.score, f"{frame.score:.3f}")


def _caption(frame: Frame, faces: int) -> str:
    who = f"#{frame.face} " if faces > 1 else ""
    when = "" if frame.time_s is None else f"  {frame.time_s:.1f} s"
    return f"{who}{frame.score:.3f}{when}"
