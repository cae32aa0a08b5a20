"""Lists ready face images: from folders (the folder tells the label) or from a CSV file."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfdet.errors import InputError
from dfdet.schema import FAKE, REAL, REAL_METHOD, Split

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
"""Of image files, in lower case; other files are passed over."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_LABELS = {"0": REAL, "real": REAL, "1": FAKE, "fake": FAKE}
_COLUMNS = ("file", "label", "method", "group", "identity", "video", "split")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """An image file and what is known of it."""

    path: Path
    source: str
    video: str
    group: str
    """Name of the group within the dataset."""
    unit: str
    """What the split is drawn from: equal units lie in one split."""
    frame: int = 0
    identity: str | None = None
    split: Split | None = None
    """Split that the list itself tells."""

    @property
    def label(self) -> int:
        """0 real, 1 fake."""
        return REAL if self.source == REAL_METHOD else FAKE


def list_folders(
    real: Sequence[Path], fake: Sequence[Path], methods: Sequence[str] = (), *, paired: bool = False
) -> list[Listed]:
    """Every image below the folders, in order of path; each is a video of its own.

    Names and splits come from the path below the folder, so that neither a move of the folder nor
    added files change them; files of equal path (without the suffix) share a split.

    Args:
        real: Folders of real images.
        fake: Folders of fakes, each of one method.
        methods: Names of the methods; else those of the folders.
        paired: Files of equal path below the folders share a group.

    Raises:
        InputError: A folder is missing, without images, or inside another; methods do not fit;
            nothing is paired.
    """
    _check_folders([*real, *fake])
    names = _method_names(fake, methods)
    sources = [(folder, REAL_METHOD) for folder in real] + list(zip(fake, names, strict=True))
    prefixes = dict(zip(map(str, real), _labels(real), strict=True))
    prefixes |= dict(zip(map(str, fake), _labels(fake), strict=True))
    crowded = Counter(source for _, source in sources)
    listed = []
    for folder, source in sources:
        prefix = f"{prefixes[str(folder)]}/" if crowded[source] > 1 else ""
        for path in _images(folder):
            name = _text(path.relative_to(folder))
            stem = _text(path.relative_to(folder).with_suffix(""))
            video = prefix + name
            group = stem if paired else f"{source}/{video}"
            listed.append(Listed(path, source, video, group, unit=stem))
    if paired:
        _check_pairs(listed)
    return listed


def list_csv(table: Path, folder: Path | None = None) -> list[Listed]:
    """Files of a CSV file with the columns ``file`` and ``label``, and what else is known.

    ``label`` is real, fake, 0 or 1. Optional: ``method`` (of fakes), ``group`` (the real behind it),
    ``identity``, ``video`` (rows of one video are its frames, in order) and ``split`` (train, val,
    test; else drawn by group).

    Args:
        table: The CSV file.
        folder: What ``file`` is relative to and must lie in; else the CSV's folder.

    Raises:
        InputError: The file cannot be read, lacks a column, or a row is wrong (with its line).
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {"file", "label"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(f"{table} lacks column {sorted(missing)}; known are {', '.join(_COLUMNS)}")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table} cannot be read as CSV ({error}); give a UTF-8 file with a header"
        ) from error
    frames: Counter[tuple[str, str]] = Counter()
    where = "the CSV's folder" if folder is None else str(folder)
    listed = []
    for line, row in rows:
        try:
            listed.append(_from_row(folder or table.parent, where, row, frames))
        except ValueError as error:
            raise InputError(f"{table} line {line}: {error}") from error
    if not listed:
        raise InputError(f"{table} has no rows; give each file a row")
    _check_splits(listed, table)
    return listed


def draw_split(unit: str, seed: int, shares: tuple[float, float, float]) -> Split:
    """Split of a unit by a hash of its name, so that added files never move others."""
    digest = hashlib.blake2b(f"{seed}/{unit}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    if place < shares[0]:
        return "train"
    # A share of 0 stays empty whatever the rounding of the sum.
    return "val" if shares[2] == 0 or place < shares[0] + shares[1] else "test"


def _from_row(
    folder: Path, where: str, row: dict[str, str | None], frames: Counter[tuple[str, str]]
) -> Listed:
    cells = {name: (row.get(name) or "").strip() for name in _COLUMNS[1:]}
    file = row["file"] or ""
    path = folder / file
    # Not Path.resolve, which fails on links that lead to themselves.
    if not file or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"file {file!r} must be a path inside {where}")
    label = _LABELS.get(cells["label"].lower())
    if label is None:
        raise ValueError(f"label {cells['label']!r} must be real, fake, 0 or 1")
    source = REAL_METHOD if label == REAL else cells["method"] or "fake"
    if label == FAKE and source == REAL_METHOD:
        raise ValueError("a fake cannot have the method 'real'")
    split = cells["split"].lower() or None
    if split not in (*SPLITS, None):
        raise ValueError(f"split {cells['split']!r} must be train, val or test")
    video = cells["video"] or _text(Path(file))
    frame = frames[source, video]
    frames[source, video] += 1
    group = cells["group"] or f"{source}/{video}"
    return Listed(path, source, video, group, group, frame, cells["identity"] or None, split)  # type: ignore[arg-type]


def _images(folder: Path) -> list[Path]:
    """Image files below a folder in order of name; symbolic links are never followed."""
    found, links, others = [], 0, 0
    for entry in _walk(folder):
        if entry.is_symlink():
            links += 1
        elif Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file(follow_symlinks=False):
            found.append(Path(entry.path))
        else:
            others += 1
    passed = f"{links} symbolic links and {others} other files passed over"
    if not found:
        raise InputError(f"folder {folder} holds no image ({passed}); known are {' '.join(sorted(SUFFIXES))}")
    if links or others:
        _log.warning("%s: %s", folder, passed)
    return found


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise InputError(
            f"folder {folder} cannot be read ({error.strerror}); check path and rights"
        ) from error
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield entry


def _check_folders(folders: Sequence[Path]) -> None:
    resolved = [folder.resolve() for folder in folders]
    for number, inner in enumerate(resolved):
        for other, outer in enumerate(resolved):
            if number != other and inner.is_relative_to(outer):
                raise InputError(
                    f"folder {folders[number]} lies in {folders[other]}: its images would be taken twice, "
                    "under two labels or methods; give folders that do not overlap"
                )


def _method_names(fake: Sequence[Path], methods: Sequence[str]) -> list[str]:
    names = list(methods) or _labels(fake)
    if len(names) != len(fake):
        raise InputError(f"{len(names)} methods for {len(fake)} fake folders; name each folder's method")
    for folder, name in zip(fake, names, strict=True):
        if not name or name == REAL_METHOD:
            raise InputError(f"fake folder {folder} has the method name {name!r}; name it with --methods")
    return names


def _labels(folders: Sequence[Path]) -> list[str]:
    """Shortest ends of the paths that tell the folders apart."""
    parts = [[part for part in folder.resolve().parts if part != "/"] for folder in folders]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = [_text(Path("-".join(end[-depth:]))) for end in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"folder{number}" for number in range(len(folders))]


def _check_pairs(listed: Sequence[Listed]) -> None:
    reals = {item.group for item in listed if item.label == REAL}
    alone = [item for item in listed if item.label == FAKE and item.group not in reals]
    fakes = sum(item.label == FAKE for item in listed)
    if len(alone) == fakes:
        raise InputError(
            f"--paired: none of {fakes} fakes has a real of the same name (as {alone[0].video!r}); "
            "leave out --paired, or name the files of a pair alike"
        )
    if alone:
        _log.warning(
            "%d of %d fakes have no real of the same name (as %r)", len(alone), fakes, alone[0].video
        )


def _check_splits(listed: Sequence[Listed], table: Path) -> None:
    seen: dict[str, Split | None] = {}
    for item in listed:
        if seen.setdefault(item.group, item.split) != item.split:
            raise InputError(
                f"{table}: group {item.group!r} has splits {seen[item.group]} and {item.split}; "
                "a group lies in one split"
            )


def _text(path: Path) -> str:
    # A name that is no UTF-8 would not fit into JSON.
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
