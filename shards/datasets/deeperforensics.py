"""DeeperForensics-1.0 (arXiv 2001.03024): actors' faces in the FaceForensics++ videos.

Layout: ``manipulated_videos/<variant>/<T>_<actor>.mp4`` and ``lists/splits/{train,val,test}.txt``. The
    reals are FF++'s in c23 (``source_videos`` are not: they only lent the faces); they are listed where
    ``original_sequences/youtube/c23/videos`` lies in the root.
Label: by folder. The source is the variant: ``end_to_end`` is the paper's set of 1000; the others are
    distorted or retouched copies of it and are listed only where ``methods`` asks for some.
Group of a fake: its target T, exact; the groups are those of FF++.
Split: the lists (703, 96 and 201 names, by actor); a real has that of its fake. FF++ divides the same
    reals otherwise, so a training set of one and a test set of the other share videos.
Unknown: the person in the real, as in FF++.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from dfdet.errors import InputError
from shards.datasets.ffpp import SPLITS, Named, Sequences, match, original
from shards.datasets.lists import find_lists, told_by
from shards.datasets.walk import by_stem, folders, read_numbered_lines, videos
from shards.source import Listing, ListOptions

DEFAULT = "end_to_end"
_VARIANT = re.compile(r"end_to_end\w*|reenact_postprocess", re.ASCII)
_NAME = re.compile(r"(?P<target>[^_]+)_[^_]+")


def find(root: Path, options: ListOptions) -> Listing:
    """Lists ``end_to_end``, or all variants where ``methods`` is given, and the reals that are there.

    Raises:
        InputError: Absent, incomplete or contradictory split lists; other variants only.
    """
    variants = [_sequences(path) for path in folders(root / "manipulated_videos")]
    variants = [each for each in variants if _VARIANT.fullmatch(each.source) and each.paths]
    chosen = [each for each in variants if options.methods or each.source == DEFAULT]
    others = [each.source for each in variants if each not in chosen]
    if not chosen and others:
        raise InputError(f"{DEFAULT} has no video in {root}; --methods can name {', '.join(others)}")
    if not chosen:
        return Listing("deeperforensics", ())
    fakes = _read_splits(root, options)
    reals = {each.target: each._replace(video=each.target) for each in fakes}
    real = original(root, "youtube", "c23")
    listing = match("deeperforensics", [(real, list(reals.values())), *((each, fakes) for each in chosen)])
    notes = list(listing.notes)
    if not real.paths:
        notes.append(f"no real is in {real.folder}: the reals are FF++'s, in c23, and belong there")
    if others:
        notes.append(f"only {DEFAULT} is taken; --methods names others: {', '.join(others)}")
    return Listing(listing.dataset, listing.videos, listing.missing, tuple(notes))


def _sequences(folder: Path) -> Sequences:
    return Sequences(folder.name, f"manipulated_videos/{folder.name}", None, by_stem(videos(folder)))


def _read_splits(root: Path, options: ListOptions) -> list[Named]:
    """The fakes that the lists name, one a line, as ``000_M101.mp4``."""
    places = [options.splits] if options.splits else [root / "lists" / "splits", root / "splits", root]
    origin = "they are lists/splits of the DeeperForensics-1.0 release"
    named: dict[str, Named] = {}
    for split, path in zip(SPLITS, find_lists([f"{s}.txt" for s in SPLITS], places, origin), strict=True):
        for number, line in read_numbered_lines(path):
            video = PurePosixPath(line.split()[0]).stem
            parts = _NAME.fullmatch(video)
            if not parts:
                raise InputError(f"{path} line {number}: {line[:80]!r} is no name like 000_M101.mp4")
            if video in named and named[video].split != split:
                raise InputError(
                    f"{path} line {number}: {video} is in {named[video].told_by} too; take the official lists"
                )
            named[video] = Named(video, parts["target"], split, told_by(path, root))
    return list(named.values())
