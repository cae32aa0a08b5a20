"""DFDC, the Deepfake Detection Challenge dataset (Dolhansky et al., arXiv 2006.07397).

Layout: ``dfdc_train_part_N/`` with ``metadata.json`` and its videos, alone or up to three folders
    deep; ``test/`` and ``validation/`` with ``labels.csv`` (filename, label) and ``videos/`` or videos.
Label: ``REAL`` or ``FAKE`` of the metadata; 0 (real) or 1 (fake) of ``labels.csv``.
Group of a fake: ``dfdc/<original>`` as the metadata tells, exact, also across parts; none where a
    ``labels.csv`` tells the label only.
Split: ``labels.csv`` test, or val where its folder is called validation; all parts are train: who
    wants a val without that folder keeps parts apart and shards them by themselves.
Unknown: the method (source ``DFDC``) and the persons; parts may share persons.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD, Split
from shards.datasets import walk
from shards.datasets.lists import told_by
from shards.datasets.named import LeftOut, by_path, is_plain, match
from shards.source import Listing, ListOptions, Video

METHOD = "DFDC"
METADATA, LABELS = "metadata.json", "labels.csv"
DEPTH = 3
_SOURCES = {"real": REAL_METHOD, "0": REAL_METHOD, "fake": METHOD, "1": METHOD}


class _Part(NamedTuple):
    folder: Path
    videos: Path
    """Folder of the videos."""
    list: str


def find(root: Path, options: ListOptions) -> Listing:
    """Videos of whatever parts are there.

    Raises:
        InputError: No list of labels is there, or none can be read.
    """
    left_out = LeftOut()
    named: list[tuple[Video, str]] = []
    readable: list[_Part] = []
    notes: list[str] = []
    for part in _parts(root, DEPTH):
        try:
            named += list(_named(root, part, left_out))
            readable.append(part)
        except InputError as error:
            notes.append(f"left out: {part.folder}: {error}")
    if not readable:
        raise InputError(
            f"{root} holds no readable {METADATA} or {LABELS} ({'; '.join(notes) or 'none found'}); "
            "give the folder that holds dfdc_train_part_0 ... or test"
        )
    present = by_path(root, (path for part in readable for path in walk.files(part.videos)))
    videos, missing = match(named, present, left_out)
    return Listing("dfdc", tuple(videos), tuple(missing), (*notes, *left_out.notes))


def _parts(folder: Path, depth: int) -> list[_Part]:
    """Folders with a list, and parts that lack theirs; what lies in them is not searched."""
    inner = walk.folders(folder)
    if (folder / LABELS).is_file():
        return [_Part(folder, folder / "videos" if folder / "videos" in inner else folder, LABELS)]
    if (folder / METADATA).is_file() or (folder.name.startswith("dfdc_train_part_") and not inner):
        return [_Part(folder, folder, METADATA)]
    return [part for each in inner for part in _parts(each, depth - 1)] if depth else []


def _named(root: Path, part: _Part, left_out: LeftOut) -> Iterator[tuple[Video, str]]:
    list_name = told_by(part.folder / part.list, root)
    place = part.videos.relative_to(root)
    split = _split(part)
    for file, label, original in _rows(part):
        source = _SOURCES.get(str(label).strip().lower())
        if not is_plain(file):
            left_out.add(f"names in {list_name} that are no file name", file)
        elif source is None:
            left_out.add("videos whose label is neither real nor fake", f"{file}: {label}")
        else:
            stem = Path(file).stem
            real = stem if source == REAL_METHOD else _stem(original)
            if real is None and split == "train":
                left_out.add("the group of fakes without an original", file)
            group = f"dfdc/{real}" if real and split == "train" else None
            path = Path(walk.text((place / file).as_posix()))
            level = "exact" if group else "none"
            yield Video(path, source, stem, split, group, level), list_name  # type: ignore[arg-type]


def _rows(part: _Part) -> list[tuple[Any, Any, Any]]:
    """File, label and original of each video that a part's list names."""
    path = part.folder / part.list
    if part.list == LABELS:
        rows = walk.read_csv(path, ("filename", "label"))
        return [(row["filename"], row["label"], None) for _, row in rows]
    content = walk.read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no list of videos; download it again")
    entries = [(file, entry if isinstance(entry, dict) else {}) for file, entry in content.items()]
    return [(file, entry.get("label"), entry.get("original")) for file, entry in entries]


def _split(part: _Part) -> Split:
    if part.list == METADATA:
        return "train"
    return "val" if part.folder.absolute().name.lower().startswith("val") else "test"


def _stem(name: Any) -> str | None:
    return Path(name).stem if is_plain(name) else None
