"""Reads what export wrote: the graph, how crops are cut for it, and what turns a score into a verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfdet.data.crops import crop_side
from dfdet.data.decode import Pixels, cut_middle
from dfdet.errors import ConfigError, WeightsError
from dfdet.evaluation.threshold import Threshold
from dfdet.evaluation.threshold import read as read_threshold
from dfdet.schema import CropRecipe

Precision = Literal["float32", "float16", "bfloat16", "int8"]

MAX_SIDE = 1024
"""Larger cuts are shrunk to it (area mean), as training's loader and prediction do (pixels)."""
_ANEW = "export it again"
Contents = TypeVar("Contents", bound=BaseModel)


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    sha256: str
    bytes: int


class _Listed(BaseModel):
    """What ``bundle.json`` holds, as far as a server needs it."""

    model_config = ConfigDict(extra="ignore")

    format_version: Literal[1]
    kind: Literal["dfdet-detector"]
    name: str
    fingerprint: str
    files: dict[str, _File]


class _Preprocess(BaseModel):
    """What ``preprocess.json`` holds, as far as a server needs it."""

    model_config = ConfigDict(extra="ignore")

    format_version: Literal[1]
    crop: CropRecipe
    crop_scale: float = Field(ge=1, le=4)
    image_size: int = Field(gt=0)


@dataclass(frozen=True)
class Bundle:
    """An exported detector; picklable."""

    folder: Path
    name: str
    fingerprint: str
    """SHA-256 of the model."""
    crop: CropRecipe
    """How its training faces were cut."""
    crop_scale: float
    """Margin that the model sees, as a multiple of the tight face."""
    image_size: int
    """Side that the graph resizes to (pixels)."""
    threshold: Threshold | None
    sha256: dict[str, str]
    """Checksums by file."""

    def graph(self, precision: Precision, device: str) -> str:
        """Name of the graph's file: ONNX on the CPU, torch's program on CUDA.

        Raises:
            ConfigError: There is none of this precision.
        """
        stem, suffix = "model" if precision == "float32" else f"model-{precision}", _suffix(device)
        if stem + suffix not in self.sha256:
            raise ConfigError(
                f"--precision {precision}: {self.folder} has no {stem}{suffix} for {device}, but"
                f" {', '.join(self.precisions(device)) or 'nothing'}; choose one of them, or {_ANEW} with it"
            )
        return stem + suffix

    def precisions(self, device: str) -> list[str]:
        """What :meth:`graph` can be asked for."""
        suffix = _suffix(device)
        stems = (
            name.removesuffix(suffix) for name in self.sha256 if name.endswith(suffix) and "/" not in name
        )
        return sorted("float32" if stem == "model" else stem.removeprefix("model-") for stem in stems)

    def check(self, name: str) -> Path:
        """Path of a file whose bytes are those that export wrote.

        Raises:
            WeightsError: They are others, or it is missing.
        """
        path = self.folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror}); {_ANEW}") from error
        if found != self.sha256.get(name):
            raise WeightsError(f"{path}: is not the file that bundle.json names, by its checksum; {_ANEW}")
        return path

    def cut(self, crop: Pixels, stored_scale: float | None) -> Pixels:
        """What the graph is given of a stored crop: its middle square, [s, s, 3].

        Args:
            crop: uint8 RGB [H, W, 3].
            stored_scale: Its margin; None where it is unknown: it is used whole.
        """
        height, width = crop.shape[:2]
        known = float("nan") if stored_scale is None else stored_scale
        middle = cut_middle(crop, crop_side(width, height, self.crop_scale, known))
        if len(middle) > MAX_SIDE:
            return cv2.resize(middle, (MAX_SIDE, MAX_SIDE), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(middle)


def open_bundle(folder: Path) -> Bundle:
    """Reads a bundle's descriptions; graphs are checked when they are used.

    Raises:
        WeightsError: It is none, or unfinished, damaged, or of another version.
    """
    if not (folder / "bundle.json").is_file():
        raise WeightsError(f"--bundle {folder}: no bundle.json in it; give a folder that export.py wrote")
    contents = _read(folder / "bundle.json", _Listed)
    bundle = Bundle(
        folder=folder,
        name=contents.name,
        fingerprint=contents.fingerprint,
        crop=CropRecipe(),
        crop_scale=1.0,
        image_size=1,
        threshold=None,
        sha256={name: each.sha256 for name, each in contents.files.items()},
    )
    preprocess = _read(bundle.check("preprocess.json"), _Preprocess)
    fitted = read_threshold(bundle.check("threshold.json")) if "threshold.json" in bundle.sha256 else None
    described: dict[str, Any] = {
        name: getattr(preprocess, name) for name in ("crop", "crop_scale", "image_size")
    }
    return Bundle(**{**vars(bundle), **described, "threshold": fitted})


def _read(path: Path, kind: type[Contents]) -> Contents:
    try:
        return kind.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        wrong = error.errors()[0] if isinstance(error, ValidationError) else None
        told = (
            f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" if wrong else " ".join(str(error).split())
        )
        raise WeightsError(f"{path}: is not of this version ({told[:200]}); {_ANEW}") from error


def _suffix(device: str) -> str:
    return ".pt2" if device == "cuda" else ".onnx"
