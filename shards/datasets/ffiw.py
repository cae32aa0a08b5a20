"""FFIW-10K, Face Forensics in the Wild (arXiv 2103.16076): scenes with several people, few of them forged.

Layout: ``source/{train,val,test}`` (real), ``target/{split}`` (fake) and ``target_mask/{split}``, in the root
    or in the two folders that it comes in (train and val; test).
Label: by folder.
Group of a fake: none. Source and target share their names, but no document says that a target was made from
    the source of its name, and pairs of different scenes would teach the scene.
Split: the folders (8000, 250 and 1738 videos a side).
Unknown: the real behind a fake, persons, and the method; which face is forged is told by the masks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dfdet.schema import REAL_METHOD, Split
from shards.datasets.lists import mask_note, short_of
from shards.datasets.walk import by_stem, folders, videos
from shards.source import Listing, ListOptions, Video

_SIDES = {REAL_METHOD: "source", "FFIW": "target"}
_OFFICIAL: dict[Split, int] = {"train": 8000, "val": 250, "test": 1738}


def find(root: Path, options: ListOptions) -> Listing:
    """Lists both sides of each split."""
    found = [
        video
        for part in (root, *folders(root))
        for split in _OFFICIAL
        for source, side in _SIDES.items()
        for video in _videos(part, source, side, split)
    ]
    counts = Counter(f"{video.source} {video.split}" for video in found)
    official = {f"{source} {split}": count for source in _SIDES for split, count in _OFFICIAL.items()}
    notes = short_of(counts, official) + mask_note([video for video in found if video.source != REAL_METHOD])
    return Listing("ffiw", tuple(found), notes=tuple(notes))


def _videos(part: Path, source: str, side: str, split: Split) -> list[Video]:
    masks = by_stem(videos(part / f"{side}_mask" / split))
    return [
        # Numbers may start anew in each split, and a name must not depend on what else is there.
        Video(
            path,
            source,
            name if name.startswith(f"{split}_") else f"{split}_{name}",
            split,
            mask=masks.get(name),
        )
        for name, path in by_stem(videos(part / side / split)).items()
    ]
