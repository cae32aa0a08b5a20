"""DeepSpeak v1 and v2 (Barrington et al., arXiv 2408.05366).

Layout: videos anywhere below the root, by the names in ``annotations-real.csv`` (video-file, identity)
    and ``annotations-fake.csv`` (video-file, kind, engine, identity-source, identity-target,
    recording-source, recording-target).
Label: which of the two files names the video; the method is the engine.
Group of a fake: a face swap's is ``deepspeak/<target>-<target recording>``, the name of that real,
    exact; of lip-sync and avatars the files do not tell which recording gave the picture, so theirs
    is ``deepspeak/<target>``, identity.
Split: train and test by person (the target), ``annotations-split-def.csv``; there is no val.
Unknown: pictures behind lip-sync and avatars, as said. Persons and recordings are numbered through
    both releases, so they share groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD, GroupLevel, Split
from shards.datasets import walk
from shards.datasets.named import LeftOut, by_file_stem, is_safe, match
from shards.listing import SPLITS as SPLIT_NAMES
from shards.source import Listing, ListOptions, Video

REALS, FAKES, SPLITS = "annotations-real.csv", "annotations-fake.csv", "annotations-split-def.csv"
RELEASES = ("v1", "v2")
EXACT_KIND = "face-swap"
_MARKS = {"recording-target-ai-generated": "v1", "audio-config": "v2"}
_FAKE_COLUMNS = ("video-file", "kind", "engine", "identity-target", "recording-target")
_Rows = list[tuple[int, dict[str, str]]]


def find(root: Path, options: ListOptions) -> Listing:
    """Videos that the annotations name and the disk has.

    Raises:
        InputError: An annotation file or a column is missing, or the release is not to be told.
    """
    reals = _read(root, options, REALS, ("video-file", "identity"))
    fakes = _read(root, options, FAKES, _FAKE_COLUMNS)
    splits = _splits(_read(root, options, SPLITS, ("identity", "split")))
    release = _release(fakes, options.release)
    left_out = LeftOut()
    named = [(video, REALS) for video in _reals(reals, splits, left_out)]
    named += [(video, FAKES) for video in _fakes(fakes, splits, left_out)]
    videos, missing = match(named, by_file_stem(walk.tree(root), left_out), left_out)
    return Listing(f"deepspeak-{release}", tuple(videos), tuple(missing), left_out.notes)


def _read(root: Path, options: ListOptions, name: str, columns: tuple[str, ...]) -> _Rows:
    """Rows of an annotation file in the root or in the folder of splits; columns as ``video-file``."""
    path = root / name
    if options.splits is not None and not path.exists():
        path = options.splits / name
    if not path.exists():
        raise InputError(
            f"{root} lacks {name}; get it from the dataset's page and put it there, or name its folder "
            "with --splits"
        )
    rows = [
        (line, {column.lower().replace("_", "-").replace(" ", "-"): cell for column, cell in row.items()})
        for line, row in walk.read_csv(path)
    ]
    if not rows:
        raise InputError(f"{path} has no rows; download it again")
    if lacking := [column for column in columns if column not in rows[0][1]]:
        raise InputError(f"{path} lacks column {lacking[0]!r}; it has {', '.join(rows[0][1])}")
    return rows


def _release(fakes: _Rows, asked: str | None) -> str:
    told = {release for mark, release in _MARKS.items() if mark in fakes[0][1]}
    if asked is not None and asked not in RELEASES:
        raise InputError(f"--release {asked!r}: DeepSpeak has {' and '.join(RELEASES)}")
    if asked is None and len(told) != 1:
        raise InputError(f"{FAKES} does not tell the release of DeepSpeak; give --release v1 or v2")
    if asked is not None and len(told) == 1 and asked not in told:
        raise InputError(f"--release {asked!r}: {FAKES} has the columns of {told.pop()}")
    return asked or told.pop()


def _splits(rows: _Rows) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for line, row in rows:
        split = row["split"].lower()
        if split not in SPLIT_NAMES:
            raise InputError(f"{SPLITS} line {line}: split {row['split']!r} must be train, val or test")
        if splits.setdefault(row["identity"], split) != split:  # type: ignore[arg-type]
            raise InputError(f"{SPLITS} line {line}: person {row['identity']!r} is in two splits")
    return splits


def _reals(rows: _Rows, splits: dict[str, Split], left_out: LeftOut) -> Iterator[Video]:
    for stem, split, row in _usable(rows, "identity", splits, left_out):
        yield Video(
            Path(stem), REAL_METHOD, stem, split, f"deepspeak/{stem}", "exact", identity=row["identity"]
        )


def _fakes(rows: _Rows, splits: dict[str, Split], left_out: LeftOut) -> Iterator[Video]:
    for stem, split, row in _usable(rows, "identity-target", splits, left_out):
        person, recording = row["identity-target"], row["recording-target"]
        exact = row["kind"].lower() == EXACT_KIND and bool(recording)
        level: GroupLevel = "exact" if exact else "identity"
        group = f"deepspeak/{person}-{recording}" if exact else f"deepspeak/{person}"
        engine = row["engine"].lower()
        if not engine or engine == REAL_METHOD:
            left_out.add("fakes without an engine", stem)
        else:
            yield Video(Path(stem), engine, stem, split, group, level, identity=person)


def _usable(
    rows: _Rows, person: str, splits: dict[str, Split], left_out: LeftOut
) -> Iterator[tuple[str, Split, dict[str, str]]]:
    for _, row in rows:
        file = row["video-file"]
        if not is_safe(file):
            left_out.add("names in the annotations that are no path", file)
        elif row[person] not in splits:
            left_out.add(f"videos of persons that {SPLITS} does not name", f"{file}: {row[person]}")
        else:
            stem = PurePosixPath(file).name
            yield (PurePosixPath(stem).stem if _has_suffix(stem) else stem), splits[row[person]], row


def _has_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in walk.VIDEO_SUFFIXES
