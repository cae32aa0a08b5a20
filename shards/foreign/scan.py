"""One foreign tar -> the facts of its samples, in one pass; memory grows with samples, not bytes."""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from shards.foreign.facts import (
    ContradictionError,
    Label,
    LabelFrom,
    Told,
    UnusableSampleError,
    label_of_name,
    method_of,
    one_label,
    read_cls,
    read_json,
)
from shards.foreign.locations import Location, opened
from shards.foreign.tars import Member, TarError, TarStream, members, printable
from shards.media.decode import MAX_FILE_BYTES, MAX_PIXELS

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 1 << 20
"""Of a JSON or .cls member."""
MAX_SAMPLES = 2_000_000
"""Of a tar: each is held, in 1 KiB, until the tar is read."""

# WebDataset's rule: a key is the path up to the first dot of the last name; hidden files have none.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_TURNED = range(5, 9)
_ORIENTATION = 0x0112
_EXIF = (b"Exif\0\0", b"eXIf", b"EXIF")  # Looked for first, since Pillow decodes a PNG to tell of none.


class Rules(NamedTuple):
    """How a tar is read."""

    label_from: LabelFrom = "auto"
    """Which members tell the labels."""
    methods: bool = True
    """Whether the JSON tells the methods."""
    decode: bool = True
    """Whether every image is decoded, or its header read only."""


class Picture(NamedTuple):
    """An image member: where its payload lies, and what it is."""

    ext: str
    offset: int
    size: int
    crc32: int
    width: int
    height: int


@dataclass(frozen=True)
class Found:
    """A sample that can be indexed."""

    key: str
    picture: Picture
    label: Label
    method: str
    told: Told


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot, with the reason; the label as far as it is known."""

    key: str
    label: Label | None
    method: str | None
    told: Told
    reason: str


@dataclass
class Scan:
    """All that was found in a tar."""

    location: Location
    bytes: int = 0
    sha256: str = ""
    found: list[Found] = field(default_factory=list)
    """By offset."""
    unusable: list[Unusable] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    """Members passed over, by extension or kind."""


@dataclass
class _Parts:
    """Members of one key; they may lie anywhere in the tar."""

    pictures: list[Picture | UnusableSampleError] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan_tar(location: Location, rules: Rules) -> Scan:
    """Reads a tar from its first byte to its last.

    Args:
        location: Where it lies.
        rules: How it is read.

    Raises:
        TarError: It is damaged, compressed, or not to be trusted otherwise.
        UnreadableError: It cannot be read.
        ContradictionError: Members of a sample disagree.
    """
    scan, samples = Scan(location), dict[str, _Parts]()
    with opened(location) as file:
        stream = TarStream(file)
        for member in members(stream):
            match = _NAME.fullmatch(printable(member.name)) if member.is_file else None
            ext = match[2].lower() if match else ("hidden" if member.is_file else "no file")
            if match is None or ext not in (*IMAGE_EXTENSIONS, "json", "cls"):
                scan.ignored[ext[:20]] += 1
                continue
            with _named(match[1]):
                _add(samples.setdefault(match[1], _Parts()), match[1], ext, member, stream, rules.decode)
            if len(samples) > MAX_SAMPLES:
                raise TarError(f"has over {MAX_SAMPLES} samples; split it")
    scan.bytes, scan.sha256 = stream.offset, stream.sha256
    for key, parts in samples.items():
        with _named(key):
            _sort_in(scan, key, parts, rules)
    scan.found.sort(key=lambda sample: sample.picture.offset)
    return scan


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ContradictionError as error:
        raise ContradictionError(f"sample {key!r}: {error}") from error


def _add(parts: _Parts, key: str, ext: str, member: Member, stream: TarStream, decode: bool) -> None:
    bound = MAX_FILE_BYTES if ext in IMAGE_EXTENSIONS else MAX_TEXT_BYTES
    if member.size > bound:
        parts.problems.append(f"its {ext} has {member.size} bytes, over {bound}")
        return
    data = stream.take(member.size, f"member {printable(member.name)!r}")
    try:
        if ext in IMAGE_EXTENSIONS:
            parts.pictures.append(_picture(data, member.offset, decode))
        elif ext == "json":
            parts.told.append(read_json(data, key))
        else:
            parts.labels.append(read_cls(data))
    except UnusableSampleError as error:
        if ext in IMAGE_EXTENSIONS:
            parts.pictures.append(error)
        else:
            parts.problems.append(str(error))


def _sort_in(scan: Scan, key: str, parts: _Parts, rules: Rules) -> None:
    told = parts.told[0] if parts.told else Told()
    label = _label(key, parts, rules.label_from)
    method = None if label is None else method_of(label, told.method if rules.methods else None)
    reason = _problem(parts, label)
    picture = parts.pictures[0] if parts.pictures else None
    if reason or label is None or method is None or not isinstance(picture, Picture):
        scan.unusable.append(Unusable(key, label, method, told, reason or str(picture)))
    else:
        scan.found.append(Found(key, picture, label, method, told))


def _label(key: str, parts: _Parts, label_from: LabelFrom) -> Label | None:
    if label_from == "name":
        return label_of_name(key)
    labels: set[Label] = set()
    if label_from in ("auto", "cls"):
        labels |= set(parts.labels)
    if label_from in ("auto", "json"):
        labels |= {told.label for told in parts.told if told.label is not None}
    return one_label(labels, "JSON and .cls" if label_from == "auto" else f"{label_from} members")


def _problem(parts: _Parts, label: Label | None) -> str:
    if parts.problems:
        return parts.problems[0]
    if len(parts.pictures) != 1:
        return f"has {len(parts.pictures) or 'no'} images"
    if len(parts.told) > 1 or len(parts.labels) > 1:
        return "has a JSON or .cls member twice"
    return "has no label" if label is None else ""


def _picture(data: bytes, offset: int, decode: bool) -> Picture:
    """Size as shown (EXIF orientation applied), and the format that the bytes are of.

    Raises:
        UnusableSampleError: The image is damaged, animated, too large, or no JPEG, PNG or WebP.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            ext, frames = _FORMATS[str(image.format)], getattr(image, "n_frames", 1)
            if any(mark in data for mark in _EXIF) and image.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            if width * height > MAX_PIXELS:
                raise UnusableSampleError(f"its image of {width}x{height} px is too large")
            if frames > 1 and image.format != "MPO":
                raise UnusableSampleError("its image is an animation")
            if decode:
                _prove(image, data)
    except UnusableSampleError:
        raise
    except Exception as error:
        raise UnusableSampleError(f"its image does not decode ({_one_line(error)})") from error
    return Picture(ext, offset, len(data), zlib.crc32(data), width, height)


def _prove(image: Image.Image, data: bytes) -> None:
    image.load()
    if image.format == "PNG":  # Pillow checks a PNG's own checksums only here.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
            again.verify()


def _one_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no JPEG, PNG or WebP"  # Its own text holds an address.
    return " ".join(str(error).split())[:200] or type(error).__name__
