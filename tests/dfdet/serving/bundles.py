"""A bundle of a checkpoint that was trained for a moment on drawn faces, and pictures of such faces."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfdet.export.bundle import write_bundle
from dfdet.export.request import Options, open_request
from tests.ray_jobs.predicting import write_checkpoint, write_detector, write_set
from tests.shards.marker_detector import draw_face

_made: list[Made] = []


@dataclass(frozen=True)
class Made:
    """What the tests serve."""

    folder: Path
    bundle: Path
    checkpoint: Path
    weights: Path
    """Of the detector."""
    clips: Path
    """Folder of videos."""


def make_once(factory: pytest.TempPathFactory) -> Made:
    """As :func:`make`, once in a session. Not to be changed."""
    if not _made:
        _made.append(make(factory.mktemp("serving")))
    return _made[0]


def make(folder: Path) -> Made:
    """A detector of drawn faces, a checkpoint and its bundle."""
    weights = write_detector(folder)
    checkpoint = write_checkpoint(folder / "runs", write_set(folder, weights))
    asked = Options(checkpoint=str(checkpoint), out=str(folder / "bundle"), crops=16)
    return Made(folder, write_bundle(open_request(asked)), checkpoint, weights, folder / "raw")


def seal(folder: Path, fingerprint: str = "f" * 64) -> None:
    """Writes ``bundle.json`` of what lies there."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != "bundle.json"
    }
    contents = {"format_version": 1, "name": "run", "fingerprint": fingerprint, "kind": "dfdet-detector"}
    write_json(folder / "bundle.json", contents | {"files": files})


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def picture(seed: int = 0, face: bool = True, form: str = "PNG", size: int = 64) -> bytes:
    """An image with a drawn face on a background of its own."""
    small = np.random.default_rng(seed).integers(30, 220, (12, 16), np.uint8)
    frame = np.array(Image.fromarray(small).resize((320, 240)).convert("RGB"))
    if face:
        draw_face(frame, 160, 120, size)
    return encoded(frame, form)


def crop(seed: int, side: int = 96) -> bytes:
    """A ready crop of noise, no two alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return encoded(np.asarray(Image.fromarray(small).resize((side, side))), "PNG")


def encoded(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()
