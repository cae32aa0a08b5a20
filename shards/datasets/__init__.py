"""Datasets of real and forged videos, one module a layout; names and lists are read, no video is opened.

Each module's docstring tells its layout, what labels it, what the real video behind a fake is and how
sure that is, the split, and what is unknown.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD
from shards.datasets import (
    celebdf,
    celebdfpp,
    crops,
    deeperforensics,
    deepspeak,
    dfd,
    dfdc,
    dfdcp,
    faceshifter,
    fakeavceleb,
    ffiw,
    ffpp,
    kodf,
    own,
    uadfv,
    wilddeepfake,
)
from shards.source import Listing, ListOptions

__all__ = ["DATASETS", "find_videos"]

Find = Callable[[Path, ListOptions], Listing]


class _Dataset(NamedTuple):
    find: Find
    layout: str
    """What is looked for below the root, for messages."""
    options: tuple[str, ...] = ()
    """Fields of the options that it can use, besides ``methods``."""


_FFPP_REALS = "original_sequences/youtube/{raw,c23,c40}/videos/T.mp4"
_KNOWN = {
    "ffpp": _Dataset(
        ffpp.find,
        f"{_FFPP_REALS} and manipulated_sequences/<Method>/{{raw,c23,c40}}/videos/T_S.mp4",
        ("compression", "splits"),
    ),
    "faceshifter": _Dataset(
        faceshifter.find,
        f"{_FFPP_REALS} and manipulated_sequences/FaceShifter/{{raw,c23,c40}}/videos/T_S.mp4",
        ("compression", "splits"),
    ),
    "dfd": _Dataset(
        dfd.find,
        "original_sequences/actors/{raw,c23,c40}/videos/T__scene.mp4 and "
        "manipulated_sequences/DeepFakeDetection/{raw,c23,c40}/videos/T_S__scene__hash.mp4",
        ("compression",),
    ),
    "deeperforensics": _Dataset(
        deeperforensics.find, "manipulated_videos/<variant>/T_actor.mp4", ("splits",)
    ),
    "cdfv2": _Dataset(celebdf.find, "{Celeb-real,YouTube-real,Celeb-synthesis}/*.mp4", ("splits",)),
    "cdfpp": _Dataset(
        celebdfpp.find,
        "{Celeb-real,YouTube-real}/*.mp4 and "
        "Celeb-synthesis/{FaceSwap,FaceReenact,TalkingFace}/<method>/*.mp4",
        ("splits",),
    ),
    "uadfv": _Dataset(uadfv.find, "real/NNNN.mp4 and fake/NNNN_fake.mp4"),
    "ffiw": _Dataset(ffiw.find, "{source,target,target_mask}/{train,val,test}/*.mp4"),
    "dfdc": _Dataset(dfdc.find, "dfdc_train_part_N/{metadata.json,*.mp4} or test/{labels.csv,*.mp4}"),
    "dfdcp": _Dataset(dfdcp.find, "dataset.json and {original_videos,method_A,method_B}/**/*.mp4"),
    "deepspeak": _Dataset(
        deepspeak.find, "annotations-{real,fake}.csv and the videos that they name", ("release", "splits")
    ),
    "wilddeepfake": _Dataset(wilddeepfake.find, "{real,fake}_{train,test}/N.tar.gz"),
    "kodf": _Dataset(kodf.find, "<actor>_<NNN>.mp4 and <target>_<source>_<code>_<seq>.mp4 in any folder"),
    "fakeavceleb": _Dataset(
        fakeavceleb.find,
        "meta_data.csv and {Real,Fake}Video-{Real,Fake}Audio/<race>/<gender>/<id>/*.mp4",
    ),
    "crops": _Dataset(crops.find, "<dataset>/<source>/<video>/<frame>.png", ("splits", "name")),
    "own": _Dataset(own.find, "videos and images that --labels names", ("labels", "name")),
}
DATASETS: dict[str, Find] = {name: dataset.find for name, dataset in _KNOWN.items()}
"""Lists a dataset's folder, by the name on the command line."""


def find_videos(dataset: str, root: Path, options: ListOptions) -> Listing:
    """Lists the videos of a dataset, and all that its names and lists tell of them.

    A source of which nothing at all is there becomes one note instead of a missing video each.

    Args:
        dataset: Name on the command line, a key of ``DATASETS``.
        root: Folder of the dataset, which may be partial.
        options: What the user says about it.

    Raises:
        InputError: Unknown dataset or method, no such folder, no video found, an option that the
            dataset cannot use, two videos of one name, or what the dataset's module refuses.
    """
    if dataset not in _KNOWN:
        raise InputError(f"--dataset {dataset!r} is unknown; there are {', '.join(sorted(_KNOWN))}")
    if not os.path.isdir(root):  # noqa: PTH112 - pathlib raises where rights are lacking.
        raise InputError(f"--root {root} is no folder; give the folder of the dataset")
    known = _KNOWN[dataset]
    _check_options(dataset, options)
    listing = known.find(root, options)
    if not listing.videos:
        told = f" ({'; '.join(listing.notes[:3])})" if listing.notes else ""
        raise InputError(f"--root {root} holds no video of {dataset}{told}; looked for {known.layout}")
    _check_names(listing)
    return _without_absent_sources(_only(listing, options.methods))


def _check_options(dataset: str, options: ListOptions) -> None:
    for option in ("compression", "release", "splits", "labels", "name"):
        value = getattr(options, option)
        if value is not None and option not in _KNOWN[dataset].options:
            users = [name for name, other in _KNOWN.items() if option in other.options]
            raise InputError(f"--{option} {value}: {dataset} has no use for it; it is for {', '.join(users)}")
    if options.splits is not None and not options.splits.is_dir():
        raise InputError(f"--splits {options.splits} is no folder; give the one that holds the lists")


def _check_names(listing: Listing) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for video in listing.videos:
        name = (video.source, video.video)
        if name in seen:
            raise InputError(
                f"two videos are named {video.name!r}: {seen[name]} and {video.path}; keep one or rename it"
            )
        seen[name] = video.path


def _only(listing: Listing, methods: tuple[str, ...]) -> Listing:
    """The reals and the chosen methods; all where none is chosen."""
    if not methods:
        return listing
    there = sorted({video.source for video in listing.videos} - {REAL_METHOD})
    if unknown := [method for method in methods if method not in (*there, REAL_METHOD)]:
        raise InputError(
            f"--methods {unknown[0]!r}: no video is of that method; there are {', '.join(there) or 'none'}"
        )
    kept = {REAL_METHOD, *methods}
    return replace(
        listing,
        videos=tuple(video for video in listing.videos if video.source in kept),
        missing=tuple(each for each in listing.missing if each.source in kept),
    )


def _without_absent_sources(listing: Listing) -> Listing:
    there = {video.source for video in listing.videos}
    absent = Counter(each.source for each in listing.missing if each.source not in there)
    notes = [f"no video of {source} is there; {count} are named" for source, count in absent.items()]
    return replace(
        listing,
        missing=tuple(each for each in listing.missing if each.source in there),
        notes=(*listing.notes, *notes),
    )
