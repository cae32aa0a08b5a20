"""Face crops that are cut already, in the layout of public preprocessed sets.

Layout: ``<dataset>/<source>/<video>/<frame>.png``; the root is the dataset's folder or its parent.
Label: real where the source's name holds "real", in any case; else the source is the method.
Group of a fake: ``<dataset>/<real>``, exact, where a real of the tree is called like the part before
    the first ``_`` (``000_003`` of ``000``) or like the first and last of three parts
    (``id0_id1_0000`` of ``id0_0000``); else none.
Split: lists ``train``, ``val``, ``test`` with ``.txt`` or ``.json``, or folders of these names with such
    lists, in --splits or the dataset's folder: a line names a video, ``<source>/<video>`` or a frame; JSON
    may hold pairs as FF++'s. Without lists all is ``all``; with lists what they do not name is left out.
Unknown: how the crops were cut, and the persons.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD, Split
from shards.datasets import walk
from shards.datasets.lists import told_by
from shards.datasets.named import LeftOut, is_safe
from shards.listing import SPLITS, SUFFIXES
from shards.source import Listing, ListOptions, Missing, Video

_Name = tuple[str | None, str]
"""Source (None: any) and video, as a list names it."""


@dataclass(frozen=True)
class _Folder:
    """The folder of a video's crops."""

    path: Path
    source: str
    """Folder above it."""
    video: str

    @property
    def real(self) -> bool:
        return "real" in self.source.lower()


def find(root: Path, options: ListOptions) -> Listing:
    """The folders of crops, each as a video.

    Raises:
        InputError: No such folders, several datasets, or lists that contradict each other or the tree.
    """
    base = _base(root, options.name)
    dataset = options.name or _dataset(base)
    left_out = LeftOut()
    folders = list(_folders(base, left_out))
    lists = _lists(base, options.splits)
    named, told = _named(lists, root, left_out)
    if lists and not any(_name(folder, named) for folder in folders):
        raise InputError(f"the lists in {lists[0][1].parent} name no video of {base}; give its own --splits")
    videos = list(_videos(folders, dataset, named if lists else None, left_out))
    missing = list(_missing(named, told, {_name(folder, named) for folder in folders}, left_out))
    notes = () if lists else (f"no split list in {base}: all videos are in the split 'all'",)
    return Listing(dataset, tuple(videos), tuple(missing), (*notes, *left_out.notes))


def _dataset(base: Path) -> str:
    """The folder's name, in characters that names of sets may have."""
    name = Path(os.path.abspath(base)).name  # noqa: PTH100 - Path.absolute leaves a `..` at the end.
    return re.sub(r"[^A-Za-z0-9_+-]", "_", name) or "crops"


def _base(root: Path, name: str | None) -> Path:
    """Folder of the sources: the root, or the one dataset in it."""
    if _holds_crops(root):
        return root
    inside = [folder for folder in walk.folders(root) if _holds_crops(folder)]
    chosen = [folder for folder in inside if folder.name == name] or inside
    if len(chosen) == 1:
        return chosen[0]
    if inside:
        names = ", ".join(walk.text(folder.name) for folder in inside)
        raise InputError(f"{root} holds {len(inside)} datasets of crops ({names}); give the folder of one")
    raise InputError(f"{root} holds no crops; they must lie as <dataset>/<source>/<video>/<frame>.png")


def _holds_crops(folder: Path) -> bool:
    return any(
        walk.files(video, SUFFIXES) for source in walk.folders(folder) for video in walk.folders(source)
    )


def _folders(base: Path, left_out: LeftOut) -> Iterator[_Folder]:
    for source in walk.folders(base):
        for loose in walk.files(source, SUFFIXES):
            left_out.add("images that lie in no video's folder", f"{source.name}/{loose.name}")
        for video in walk.folders(source):
            yield _Folder(video, walk.text(source.name), walk.text(video.name))


def _videos(
    folders: list[_Folder], dataset: str, named: Mapping[_Name, Split] | None, left_out: LeftOut
) -> Iterator[Video]:
    reals = Counter(folder.video for folder in folders if folder.real)
    for folder in folders:
        name = None if named is None else _name(folder, named)
        if named is not None and name is None:
            left_out.add("videos that no split list names", f"{folder.source}/{folder.video}")
            continue
        split: Split = named[name] if named is not None and name is not None else "all"
        # Two folders of reals (Celeb-real, YouTube-real) may use one name.
        video = f"{folder.source}-{folder.video}" if folder.real and reals[folder.video] > 1 else folder.video
        behind = video if folder.real else _behind(folder.video, reals)
        if behind is None:
            left_out.add("the group of fakes without a real of their name", folder.video)
        yield Video(
            folder.path,
            _source(folder.source),
            video,
            split,
            None if behind is None else f"{dataset}/{behind}",
            "none" if behind is None else "exact",
            kind="folder",
            ready=True,
        )


def _behind(fake: str, reals: Mapping[str, int]) -> str | None:
    """The one real that a fake's name tells of."""
    parts = fake.split("_")
    candidates = [parts[0], f"{parts[0]}_{parts[-1]}"] if len(parts) == 3 else parts[:1]
    return next((name for name in candidates if reals.get(name) == 1), None)


def _missing(
    named: Mapping[_Name, Split],
    told: Mapping[_Name, str],
    found: Collection[_Name | None],
    left_out: LeftOut,
) -> Iterator[Missing]:
    for name, split in named.items():
        source, video = name
        if name not in found and source is None:
            left_out.add("names of the lists that no folder has", video)
        elif name not in found and source is not None:
            yield Missing(_source(source), video, split, told[name])


def _source(folder: str) -> str:
    return REAL_METHOD if "real" in folder.lower() else folder


def _name(folder: _Folder, named: Mapping[_Name, Split]) -> _Name | None:
    """The name under which lists know a folder."""
    names: tuple[_Name, _Name] = ((folder.source, folder.video), (None, folder.video))
    return next((name for name in names if name in named), None)


def _lists(base: Path, splits: Path | None) -> list[tuple[Split, Path]]:
    place = splits or base
    suffixes = {".txt", ".json"}
    lists = [
        (split, path)
        for split in SPLITS
        for path in [
            *(path for path in walk.files(place, suffixes) if path.stem == split),
            *walk.files(place / split, suffixes),
        ]
    ]
    if splits is not None and not lists:
        raise InputError(f"--splits {splits} holds no train, val or test list (.txt or .json)")
    return lists


def _named(
    lists: list[tuple[Split, Path]], root: Path, left_out: LeftOut
) -> tuple[dict[_Name, Split], dict[_Name, str]]:
    """Split of each name, and the list that tells it."""
    splits: dict[_Name, Split] = {}
    told: dict[_Name, str] = {}
    for split, path in lists:
        for entry in _entries(path):
            name = _parsed(entry)
            if name is None:
                left_out.add(f"lines of {path.name} that name no video", entry)
            elif splits.setdefault(name, split) != split:
                raise InputError(f"{path}: {entry!r} is in {splits[name]} too; a video lies in one split")
            else:
                told.setdefault(name, told_by(path, root))
    return splits, told


def _entries(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".txt":
        yield from walk.read_lines(path)
        return
    content = walk.read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} is no list of videos or of pairs of them")
    for entry in content:
        if isinstance(entry, list) and len(entry) == 2:
            # FF++'s pairs: two reals, and the fakes of one with the other's face.
            first, second = map(str, entry)
            yield from (first, second, f"{first}_{second}", f"{second}_{first}")
        else:
            yield entry


def _parsed(entry: Any) -> _Name | None:
    """Source and video of a line: a video, ``<source>/<video>``, or the path of one of its frames."""
    if not is_safe(entry):
        return None
    path = PurePosixPath(entry)
    if path.suffix.lower() in SUFFIXES:
        path = path.parent
    elif path.suffix.lower() in walk.VIDEO_SUFFIXES:
        path = path.with_suffix("")
    return (path.parts[-2] if len(path.parts) > 1 else None, path.name) if path.name else None
