"""DFDC preview (Dolhansky et al., arXiv 1910.08854).

Layout: ``original_videos/``, ``method_A/`` and ``method_B/`` with videos as ``dataset.json`` names
    them, in the root or in its ``dfdc_preview_set``.
Label: ``real`` or ``fake`` of ``dataset.json``; the method is the folder.
Group of a fake: its name is ``<swapped>_<target>_<scene>_<clip>``; where ``dataset.json`` names the
    real ``<target>_<scene>_<clip>``, ``dfdcp/<that>``, exact; else ``dfdcp/<target>``, identity.
Split: train and test by ``dataset.json``; there is no val.
Unknown: whether clip numbers of fakes and reals always mean the same seconds; nobody states it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD, GroupLevel, Split
from shards.datasets import walk
from shards.datasets.lists import told_by
from shards.datasets.named import LeftOut, by_path, is_safe, match
from shards.listing import SPLITS
from shards.source import Listing, ListOptions, Video

LIST, NESTED = "dataset.json", "dfdc_preview_set"
_FAKE = re.compile(r"[^_]+_(?P<clip>(?P<person>[^_]+)_.+)")


class _Entry(NamedTuple):
    path: PurePosixPath
    real: bool
    split: Split


def find(root: Path, options: ListOptions) -> Listing:
    """Videos that ``dataset.json`` names and the disk has.

    Raises:
        InputError: ``dataset.json`` is missing or no list of videos.
    """
    folder = root / NESTED if (root / NESTED / LIST).exists() else root
    content = walk.read_json(folder / LIST)
    if not isinstance(content, dict):
        raise InputError(f"{folder / LIST} is no list of videos; download it again")
    left_out = LeftOut()
    entries = list(_entries(content, left_out))
    reals = {entry.path.stem for entry in entries if entry.real}
    named = ((_video(entry, reals), told_by(folder / LIST, root)) for entry in entries)
    videos, missing = match(named, by_path(folder, walk.tree(folder)), left_out)
    return Listing("dfdcp", tuple(videos), tuple(missing), left_out.notes)


def _entries(content: Mapping[str, Any], left_out: LeftOut) -> Iterator[_Entry]:
    for file, told in content.items():
        told = told if isinstance(told, dict) else {}
        label, split = (str(told.get(field)).strip().lower() for field in ("label", "set"))
        if not is_safe(file):
            left_out.add(f"names in {LIST} that are no path in the dataset", file)
        elif label not in {"real", "fake"}:
            left_out.add("videos whose label is neither real nor fake", f"{file}: {label}")
        elif split not in SPLITS:
            left_out.add("videos whose set is neither train nor test", f"{file}: {split}")
        else:
            yield _Entry(PurePosixPath(file), label == "real", split)  # type: ignore[arg-type]


def _video(entry: _Entry, reals: Collection[str]) -> Video:
    stem = entry.path.stem
    if entry.real:
        person = stem.split("_")[0]
        return Video(
            Path(entry.path), REAL_METHOD, stem, entry.split, f"dfdcp/{stem}", "exact", identity=person
        )
    source = entry.path.parts[0] if len(entry.path.parts) > 1 else "fake"
    group, level, target = _behind(stem, reals)
    return Video(Path(entry.path), source, stem, entry.split, group, level, identity=target)


def _behind(fake: str, reals: Collection[str]) -> tuple[str | None, GroupLevel, str | None]:
    """Group of a fake, how sure it is, and the person."""
    parts = _FAKE.fullmatch(fake)
    if parts is None:
        return None, "none", None
    exact = parts["clip"] in reals
    behind = parts["clip"] if exact else parts["person"]
    return f"dfdcp/{behind}", "exact" if exact else "identity", parts["person"]
