"""FaceForensics++ (arXiv 1901.08971), and what its relatives share with it.

Layout: ``original_sequences/youtube/{raw,c23,c40}/videos/T.mp4`` and
    ``manipulated_sequences/<Method>/{c}/videos/T_S.mp4``; masks in ``<Method>/masks/videos/T_S.mp4``.
Label: by folder.
Group of a fake: its target T, the video whose face was replaced; exact. Lengths differ (DF has T's, F2F
    S's, FS and NT the shorter of both).
Split: the official ``train.json``, ``val.json`` and ``test.json``, lists of pairs [a, b]: reals a, b and
    fakes a_b, b_a. Videos that they do not name are left out.
Unknown: the person. A video's number is all there is, so no identity is told beyond the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD, Split
from shards.datasets.lists import find_lists, lacking, told_by
from shards.datasets.walk import by_stem, files, read_json
from shards.source import Listing, ListOptions, Missing, Video

METHODS = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
"""Folder of each source, in the order in which a real takes the mask of a fake."""
COMPRESSIONS = ("raw", "c23", "c40")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Named(NamedTuple):
    """A video that the split lists name."""

    video: str
    target: str
    """The real video behind it."""
    split: Split
    told_by: str


@dataclass(frozen=True)
class Sequences:
    """The files of one source by name, and their masks."""

    source: str
    folder: str
    """Relative to the root."""
    compression: str | None
    paths: Mapping[str, Path]
    masks: Mapping[str, Path] = field(default_factory=dict)


def find(root: Path, options: ListOptions) -> Listing:
    """Lists the four methods and their reals in one compression.

    Raises:
        InputError: A compression that is unknown or not there; absent, incomplete or contradictory split
            lists.
    """
    return find_methods("ffpp", METHODS, root, options)


def find_methods(name: str, methods: Mapping[str, str], root: Path, options: ListOptions) -> Listing:
    """Lists some methods of the family (source to folder) with the reals they were made from.

    Raises:
        InputError: As :func:`find`.
    """
    compression = compression_of(options)
    fakes = [manipulated(root, source, folder, compression) for source, folder in methods.items()]
    real = original(root, "youtube", compression)
    if not any(sequences.paths for sequences in (real, *fakes)):
        refuse_other_compression(root, compression, (real, *fakes))
        return Listing(f"{name}-{compression}", ())
    named_reals, named_fakes = _read_splits(root, options)
    targets = {each.video: each.target for each in named_fakes}
    real = replace(real, masks=real_masks(targets, fakes))
    return match(f"{name}-{compression}", [(real, named_reals), *((fake, named_fakes) for fake in fakes)])


def match(dataset: str, parts: Iterable[tuple[Sequences, list[Named]]]) -> Listing:
    """The videos that lie on the disk and are named by the lists, all in groups of the family."""
    videos: list[Video] = []
    missing: list[Missing] = []
    notes = []
    for sequences, named in parts:
        found = [_video(sequences, each) for each in named if each.video in sequences.paths]
        videos += found
        named_all = (Missing(sequences.source, each.video, each.split, each.told_by) for each in named)
        missing += lacking(named_all, found)
        if unnamed := len(sequences.paths) - len(found):
            notes.append(f"{unnamed} videos in {sequences.folder} are left out: no split list names them")
    return Listing(dataset, tuple(videos), tuple(missing), tuple(notes))


def compression_of(options: ListOptions) -> str:
    """The chosen compression; c23 unless told.

    Raises:
        InputError: There is none of that name.
    """
    compression = options.compression or "c23"
    if compression not in COMPRESSIONS:
        raise InputError(f"--compression {compression!r} is unknown; there are {', '.join(COMPRESSIONS)}")
    return compression


def refuse_other_compression(root: Path, compression: str, absent: Iterable[Sequences]) -> None:
    """Refuses a compression of which nothing is there while another one is.

    Raises:
        InputError: With the compression that is there.
    """
    for sequences in absent:
        for other in COMPRESSIONS:
            folder = sequences.folder.replace(f"/{compression}/", f"/{other}/")
            if files(root / folder):
                raise InputError(
                    f"{root} has no video in {compression}, but some in {folder}; give --compression {other}"
                )


def original(root: Path, origin: str, compression: str) -> Sequences:
    """Real videos of ``youtube`` (FF++) or ``actors`` (DFD)."""
    folder = f"original_sequences/{origin}/{compression}/videos"
    return Sequences(REAL_METHOD, folder, compression, by_stem(files(root / folder)))


def manipulated(root: Path, source: str, method: str, compression: str) -> Sequences:
    """Fakes of one method and their masks, which are of no compression."""
    folder = f"manipulated_sequences/{method}/{compression}/videos"
    masks = by_stem(files(root / "manipulated_sequences" / method / "masks" / "videos"))
    return Sequences(source, folder, compression, by_stem(files(root / folder)), masks)


def real_masks(targets: Mapping[str, str], fakes: Iterable[Sequences]) -> dict[str, Path]:
    """For each real the mask of the first of its fakes that has one; ``targets``: real of a fake."""
    masks: dict[str, Path] = {}
    for sequences in fakes:
        for video, mask in sequences.masks.items():
            if video in sequences.paths and video in targets:
                masks.setdefault(targets[video], mask)
    return masks


def _video(sequences: Sequences, named: Named) -> Video:
    return Video(
        path=sequences.paths[named.video],
        source=sequences.source,
        video=named.video,
        split=named.split,
        group=f"ffpp/{named.target}",
        group_level="exact",
        mask=sequences.masks.get(named.target if sequences.source == REAL_METHOD else named.video),
        compression=sequences.compression,
    )


def _read_splits(root: Path, options: ListOptions) -> tuple[list[Named], list[Named]]:
    """Reals and fakes that the lists name."""
    places = [options.splits] if options.splits else [root, root / "splits", root / "dataset" / "splits"]
    origin = "they are dataset/splits of the FaceForensics repository (github.com/ondyari/FaceForensics)"
    paths = find_lists([f"{split}.json" for split in SPLITS], places, origin)
    reals: list[Named] = []
    fakes = []
    seen: dict[str, Path] = {}
    for split, path in zip(SPLITS, paths, strict=True):
        teller = told_by(path, root)
        for a, b in _read_pairs(path):
            for real in (a, b):
                if real in seen:
                    raise InputError(
                        f"{path} names {real!r} again, which {seen[real]} names too; take the official lists"
                    )
                seen[real] = path
                reals.append(Named(real, real, split, teller))
            fakes += [Named(f"{a}_{b}", a, split, teller), Named(f"{b}_{a}", b, split, teller)]
    return reals, fakes


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of pairs; take the official split lists")
    for entry in content:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)):
            raise InputError(f"{path}: {str(entry)[:80]!r} is no pair of video names, as ['953', '974']")
    return [(a, b) for a, b in content]
