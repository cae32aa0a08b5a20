"""WildDeepfake (Zi et al., arXiv 2101.01456): face crops of 224 pixels from the internet.

Layout: ``{real,fake}_{train,test}/N.tar.gz``, in the root or in its ``deepfake_in_the_wild``; an
    archive holds the PNG crops of several face sequences and is one video here.
Label: the folder.
Group of a fake: none; the dataset does not tell what fakes were made from.
Split: train and test, the folder; there is no val.
Unknown: methods (source ``WDF``), persons, and which archives come from one video.
"""

from __future__ import annotations

from pathlib import Path

from dfdet.schema import REAL_METHOD, Split
from shards.datasets import walk
from shards.datasets.named import LeftOut
from shards.source import Listing, ListOptions, Video

METHOD, NESTED = "WDF", "deepfake_in_the_wild"
FOLDERS: dict[str, tuple[str, Split]] = {
    "real_train": (REAL_METHOD, "train"),
    "real_test": (REAL_METHOD, "test"),
    "fake_train": (METHOD, "train"),
    "fake_test": (METHOD, "test"),
}
ENDINGS = (".tar.gz", ".tgz", ".tar")


def find(root: Path, options: ListOptions) -> Listing:
    """The archives, each as a video of ready crops."""
    nested = root / NESTED
    base = nested if nested in walk.folders(root) else root
    present = {folder.name for folder in walk.folders(base)}
    left_out = LeftOut()
    videos = [
        Video(path, source, f"{split}-{name}", split, kind="archive", ready=True)
        for folder, (source, split) in FOLDERS.items()
        for name, path in _archives(base / folder, left_out)
    ]
    notes = [f"{folder} is not there" for folder in FOLDERS if folder not in present]
    return Listing("wilddeepfake", tuple(videos), (), (*notes, *left_out.notes))


def _archives(folder: Path, left_out: LeftOut) -> list[tuple[str, Path]]:
    """Archives directly in a folder, by name without ending."""
    found: dict[str, Path] = {}
    for path in walk.files(folder, {".gz", ".tgz", ".tar"}):
        ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
        name = walk.text(path.name[: -len(ending)]) if ending else ""
        if not name or name in found:
            left_out.add("files that are no archive, or one more of the same name", path.name)
        else:
            found[name] = path
    for inner in walk.folders(folder):
        left_out.add("unpacked folders (the archives are read as they are)", inner.name)
    return list(found.items())
