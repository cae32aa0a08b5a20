"""What a user chooses when videos become shards; ``python -m shards videos`` and the Ray job share it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dfdet.errors import InputError
from dfdet.schema import MAX_CRF, Recompression, Split, parse_recompression
from shards.source import ListOptions

Pick = Literal["uniform", "random", "stride", "at_least"]
_ELSEWHERE = (
    "root",
    "out",
    "splits",
    "labels",
    "weights",
    "device",
    "max_failed",
    "workers",
    "dry_run",
    "actors",
)
"""Options that say where and how, and do not change a sample."""
SCALE = 1.6
"""Margin that faces are stored with, so that any training crop up to it can be cut later."""


class VideoSets(BaseModel):
    """Turn videos (or images, or ready face crops) of a dataset into the shard sets NAME-SPLIT."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: str
    """ffpp, faceshifter, dfd, deeperforensics, cdfv2, cdfpp, dfdc, dfdcp, ffiw, deepspeak, uadfv,
    wilddeepfake, kodf, fakeavceleb; crops (ready-made DATASET/SOURCE/VIDEO/FRAME.png); own (any
    videos and images, with --labels)."""
    root: Path
    """Folder of the dataset, as its authors lay it out; it may be partial."""
    out: Path
    """Folder for the sets."""
    name: str | None = None
    """Name of the sets; else the dataset's with its variant, as ffpp-c23."""
    dry_run: bool = False
    """Only tell what was found and what is missing; no video is opened."""

    compression: str | None = None
    """raw, c23 or c40, for the FF++ family; default c23."""
    release: str | None = None
    """Release of a dataset that has several, as v1 (DeepSpeak)."""
    recompress: str | None = None
    """Compress each video anew before its faces are cut, as h264-crf40 (h264, h265, av1 or vp9): a set of
    the same samples for robustness, with -h264-crf40 after the dataset's name (and after --name). Faces
    are cut where they lie in the videos as they are."""
    splits: Path | None = None
    """Folder of the official split lists, where they are not in the root."""
    labels: Path | None = None
    """CSV of own files: columns file, label (real, fake, 0, 1) and, where known, method, group,
    identity, video, split."""
    methods: tuple[str, ...] = ()
    """Only these forgery methods, as they stand in keys; reals are always kept."""
    only: tuple[Split, ...] = ()
    """Only these splits: train, val, test, all."""
    on_leak: Literal["refuse", "drop"] = "refuse"
    """What to do when a group lies in two splits: refuse, or drop it from train (and val)."""

    frames: int = Field(32, ge=1)
    """Frames of a video."""
    pick: Pick = "uniform"
    """uniform over the video; random by --seed; every --stride-th; at_least: outward from the middle
    until that many faces are found."""
    seed: int = 0
    """Seed of --pick random."""
    stride: int = Field(10, ge=1)
    """Distance of frames for --pick stride (frames)."""
    min_frames: int = Field(8, ge=1)
    """A video of fewer frames is recorded as too short; images are exempt (frames)."""

    detector: Literal["retinaface", "onnx"] = "retinaface"
    """retinaface: ResNet-50 of retinaface-pytorch, for GPUs; onnx: a RetinaFace-style file, for CPUs."""
    weights: Path | None = None
    """File of the detector's weights; else retinaface fetches its release."""
    detector_size: int = Field(640, ge=64, le=4096)
    """Longest side that faces are searched at; larger frames are shrunk to it (pixels)."""
    threshold: float = Field(0.5, ge=0.01, lt=1)
    """Least confidence of a face (0 to 1)."""
    nms: float = Field(0.4, gt=0, le=1)
    """Overlap from which two boxes are one face (0 to 1)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of retinaface."""
    selection: Literal["largest", "mask", "track"] = "mask"
    """Which face: the largest; mask: the one that the manipulation mask covers, largest where there is
    none; track: one person through the video, who is in view most (or covered by the mask)."""

    template: Literal["gend", "dfb"] = "gend"
    """Where the five points go: GenD's or DeepfakeBench's template."""
    scale: float | None = Field(None, ge=1, le=4)
    """Stored margin, as a multiple of the tight face; default 1.6. For ready crops: how they were cut."""
    size_px: int = Field(320, ge=32, le=2048)
    """Stored side (pixels); 320 at 1.6 is 260 at 1.3."""
    format: Literal["auto", "webp", "png", "jpg"] = "auto"
    """auto: lossless webp, and ready crops as they are; png is lossless too."""
    quality: int = Field(95, ge=90, le=100)
    """JPEG quality."""

    max_failed: float = Field(0.2, ge=0, le=1)
    """Stop when more than this share of the videos gives no face (0 to 1)."""
    shard_samples: int = Field(1024, ge=1)
    """Planned samples of a shard; a group is never divided."""
    workers: int = Field(0, ge=0)
    """Processes (or Ray tasks) at work; 0: as many as CPUs. Equal bytes for any number."""

    @model_validator(mode="after")
    def _consistent(self) -> VideoSets:  # No ValueError: pydantic would wrap it in many lines.
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", self.name):
            raise InputError(f"--name {self.name!r}: use letters, digits and _ + - . only")
        if self.recompress is not None and parse_recompression(self.recompress) is None:
            raise InputError(
                f"--recompress {self.recompress!r}: give CODEC-crfN, as h264-crf40; N from 1 to "
                + ", ".join(f"{most} ({codec})" for codec, most in MAX_CRF.items())
            )
        if self.detector == "onnx" and self.device == "cuda":
            raise InputError("--device cuda: the onnx detector runs on the CPU; use --detector retinaface")
        return self

    @property
    def chosen(self) -> str:
        """What was chosen for the samples, as text for the manifest; the same wherever they are made."""
        given = self.model_dump(mode="json", exclude_defaults=True, exclude=set(_ELSEWHERE))
        return " ".join(f"{name}={json.dumps(value)}" for name, value in given.items())

    @property
    def recompression(self) -> Recompression | None:
        """The codec that videos are compressed by anew, if any."""
        return parse_recompression(self.recompress) if self.recompress else None

    def set_name(self, dataset: str) -> str:
        """Name of the sets, without the split, of a dataset with its variant."""
        if self.name is None:
            return dataset
        return f"{self.name}-{self.recompress}" if self.recompress else self.name

    @property
    def listing(self) -> ListOptions:
        """What concerns the dataset's layout."""
        name = self.name if self.dataset in {"own", "crops"} else None
        return ListOptions(self.compression, self.release, self.splits, self.labels, self.methods, name)
