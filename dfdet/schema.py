"""Names and formats of shards: sample, index and manifest.

Written by ``shards``, read by ``dfdet.data``; neither torch nor Ray is imported here.

A *shard set* is ``<name>-NNNNNN.tar`` files (plain WebDataset), ``<name>.parquet`` (the index, one
row a sample) and ``<name>.json`` (the manifest, written last: a set without one is unfinished).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple
from urllib.parse import quote, unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
REAL, FAKE = 0, 1
REAL_METHOD = "real"
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
GroupLevel = Literal["exact", "identity", "none"]
Split = Literal["train", "val", "test", "all"]

_PART = re.compile(r"[A-Za-z0-9_+%-]+")


def encode_part(text: str) -> str:
    """Percent-encodes all but ``[A-Za-z0-9_+-]``, so that no dot, slash or ``..`` is left in a key."""
    return re.sub(r"[.~]", lambda match: f"%{ord(match[0]):02X}", quote(text, safe="+"))


def decode_part(part: str) -> str:
    """Inverse of :func:`encode_part`."""
    return unquote(part)


def make_key(dataset: str, source: str, video: str, frame: int) -> str:
    """``<dataset>/<source>/<video>/<frame:06d>`` with each part percent-encoded."""
    parts = (dataset, source, video)
    if not all(parts) or frame < 0:
        raise ValueError(f"key of {parts} frame {frame}: parts must not be empty, frame not negative")
    return "/".join(map(encode_part, parts)) + f"/{frame:06d}"


def split_key(key: str) -> tuple[str, str, str, int]:
    """Dataset, source, video (decoded) and frame of a key."""
    parts = key.split("/")
    if len(parts) != 4 or not all(map(_PART.fullmatch, parts)) or not parts[3].isdecimal():
        raise ValueError(f"key {key!r} is not <dataset>/<source>/<video>/<frame>")
    dataset, source, video = map(decode_part, parts[:3])
    return dataset, source, video, int(parts[3])


class Recompression(NamedTuple):
    """A video codec that videos were compressed by anew, and how strongly; its text is ``h264-crf40``."""

    codec: str
    crf: int
    """Constant rate factor: the higher, the worse the pictures."""

    def __str__(self) -> str:
        return f"{self.codec}-crf{self.crf}"


MAX_CRF = {"h264": 51, "h265": 51, "av1": 63, "vp9": 63}
"""Codecs of re-compression, and the strongest rate factor of each."""
_RECOMPRESSION = re.compile(rf"({'|'.join(MAX_CRF)})-crf([1-9][0-9]?)")


def parse_recompression(text: str) -> Recompression | None:
    """``h264-crf40``; None where it is none."""
    match = _RECOMPRESSION.fullmatch(text)
    if match is None or int(match[2]) > MAX_CRF[match[1]]:
        return None
    return Recompression(match[1], int(match[2]))


def split_recompression(dataset: str) -> tuple[str, Recompression] | None:
    """Base and re-compression that a dataset's name tells, as ``ffpp-c23-h264-crf40``; None without one."""
    head, _, last = dataset.rpartition("-")
    base, _, codec = head.rpartition("-")
    how = parse_recompression(f"{codec}-{last}")
    return (base, how) if base and how else None


def _plain_name(name: str) -> str:
    if not name or name != PurePosixPath(name).name or name in {".", ".."} or "\\" in name or "\0" in name:
        raise ValueError(f"file name {name!r} must be a plain name inside the set's folder")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class CropRecipe(_Record):
    """How the faces were cut; prediction repeats it. Runs mix sets only of equal recipes."""

    template: str = "none"
    """Landmark template (``gend``, ``dfb``, ``demo``); ``none`` for ready images of unknown origin."""
    scale: float | None = Field(None, ge=1.0, le=4.0)
    """Stored margin, as a multiple of the tight face; None where unknown: the whole image is used."""
    size_px: int | None = Field(None, gt=0)
    """Stored side (pixels); None where images differ."""
    detector: str | None = None
    """Face detector and its version."""
    detector_weights_sha256: str | None = None
    """Checksum of the detector's weights."""
    selection: str | None = None
    """Which face was taken: largest, mask, track."""


class Candidate(_Record):
    """A face that the detector found in the frame, chosen or not."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the upright frame."""
    score: float = Field(ge=0, le=1)
    """Detector confidence."""
    mask_overlap: float | None = None
    """Part of the box that the manipulation mask covers (0 to 1); None without a mask."""
    track: int | None = None
    """Number of the track through the video that the face belongs to; None where none was formed."""


class Sample(_Record):
    """The JSON member of a sample: what is known of one face crop."""

    dataset: str
    """Dataset and variant, as ``ffpp-c23``."""
    source: str
    """``real`` or the forgery method."""
    label: Literal[0, 1]
    """0 real, 1 fake."""
    video: str
    """Name of the video within dataset and source."""
    frame: int = Field(ge=0)
    """Frame index in the video."""
    group: str | None = None
    """``<dataset family>/<id of the real video behind it>``, shared by a real and its fakes."""
    group_level: GroupLevel = "none"
    """How well the group is known; pairs are formed at ``exact`` only."""
    identity: str | None = None
    """Person in the real video, where the dataset tells: clusters of the bootstrap."""
    landmarks: tuple[tuple[float, float], ...] | None = None
    """Five points (eyes, nose, mouth corners) in crop pixels, image-left first."""
    score: float | None = None
    """Detector confidence (0 to 1)."""
    box: tuple[float, float, float, float] | None = None
    """Face box x0, y0, x1, y1 in crop pixels."""
    candidates: tuple[Candidate, ...] = ()
    """Every face found in the frame, best score first."""
    chosen: int | None = None
    """Which of the candidates was cut."""
    to_crop: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """Affine map [2, 3] from pixels of the upright frame to pixels of the crop."""
    frame_size: tuple[int, int] | None = None
    """Width and height of the upright frame (pixels)."""
    crop: CropRecipe = CropRecipe()
    """How it was cut."""
    compression: str | None = None
    """Compression of the source video, as ``c23``, and of its re-compression, as ``c23+h264-crf40``."""
    split: Split = "all"
    """Official split."""

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        if (self.label == REAL) != (self.source == REAL_METHOD):
            raise ValueError(f"label {self.label} contradicts source {self.source!r}: 0 means real, 1 fake")
        if (self.group is None) != (self.group_level == "none"):
            raise ValueError(f"group {self.group!r} contradicts group_level {self.group_level!r}")
        return self

    @property
    def key(self) -> str:
        """WebDataset key."""
        return make_key(self.dataset, self.source, self.video, self.frame)


class FileEntry(_Record):
    """A file of the set with its size and checksum."""

    file: PlainName
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardEntry(FileEntry):
    """A tar of the set."""

    samples: int = Field(gt=0)
    url: str | None = None
    """Where it lies, if not beside the manifest: a URL or an absolute path (foreign tars)."""


class Failure(_Record):
    """A video without usable faces: it stays in the denominators."""

    video: str
    """``<dataset>/<source>/<video>``, as in keys."""
    label: Literal[0, 1]
    reason: str
    group: str | None = None
    """As of :class:`Sample`, as the next two: which videos the bootstrap resamples it with."""
    group_level: GroupLevel = "none"
    identity: str | None = None


class Shortfall(_Record):
    """A video that gave fewer faces than frames were asked of it."""

    video: str
    """``<dataset>/<source>/<video>``, as in keys."""
    label: Literal[0, 1]
    asked: int
    """Frames that were to be read."""
    read: int
    """Frames that could be read."""
    faces: int
    """Frames in which a face was found and cut."""
    reason: str


class Manifest(_Record):
    """What a finished shard set holds."""

    format_version: Literal[1] = 1
    name: PlainName
    dataset: str
    split: Split = "all"
    index: FileEntry
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    samples: int = Field(gt=0)
    by_label: dict[str, int]
    """Samples by label (``real``, ``fake``)."""
    by_method: dict[str, int]
    """Samples by method (``real`` among them)."""
    crop: CropRecipe
    failures: tuple[Failure, ...] = ()
    """Videos without usable faces."""
    shortfalls: tuple[Shortfall, ...] = ()
    """Videos of which only some frames gave a face."""
    missing: tuple[str, ...] = ()
    """What the dataset's own lists name but the disk lacked, as ``<source>/<video>``; of foreign tars
    also samples without a label, and tars that were left out."""
    plan_sha256: str = ""
    """Fingerprint of the inputs and options; equal plans give equal sets."""
    written_by: str = ""
    """Program and version, with the arguments that make the set again."""

    @model_validator(mode="after")
    def _sums(self) -> Manifest:
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError(f"samples={self.samples} is not the sum over the shards")
        return self


def index_schema() -> pa.Schema:
    """Arrow schema of the index: a row a sample, in the order of shard and offset.

    ``offset``, ``size`` and ``crc32`` are the image member's payload in its tar.
    """
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("key", pa.string()),
            ("ext", text),
            ("shard", pa.int32()),
            ("offset", pa.int64()),
            ("size", pa.int32()),
            ("crc32", pa.uint32()),
            ("label", pa.int8()),
            ("method", text),
            ("group", text),
            ("group_level", text),
            ("identity", text),
            ("video", text),
            ("frame", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    )
