"""Own videos, images, folders of frames and tars of frames, with a CSV of labels.

Layout: any; the CSV (--labels, else ``labels.csv`` in the root) has a row for each video, with ``file``
    relative to the root and inside it. A folder is a video of frames; a suffix tells images and tars
    of frames, and all else is taken for a video.
Label: the columns ``label`` (real, fake, 0, 1) and ``method``.
Group: the column ``group``, exact: the user says that equal groups are a real and its fakes; without
    it each file is a group of its own.
Split: the column ``split``; a row without one is drawn by a hash of its group.
Unknown: what the CSV does not tell. Files that it does not name are not looked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dfdet.errors import InputError
from dfdet.schema import Split
from shards.datasets.lists import told_by
from shards.listing import SPLITS, SUFFIXES, Listed, draw_split, list_csv
from shards.source import Kind, Listing, ListOptions, Missing, Video

LABELS = "labels.csv"
SHARES = (0.7, 0.15, 0.15)
"""Of train, val and test, for rows without a split."""
_TARS = (".tar", ".tar.gz", ".tgz")


def find(root: Path, options: ListOptions) -> Listing:
    """Files of the CSV, each as a video of its own; those that are absent are missing.

    Raises:
        InputError: No CSV, a row that is wrong, or a video with several rows.
    """
    table = options.labels or root / LABELS
    if not table.is_file():
        raise InputError(f"{table} is not there; give a CSV with the columns file and label with --labels")
    listed = list_csv(table, root)
    _check_one_row_each(listed, table)
    dataset = options.name or "own"
    videos = tuple(_video(item, dataset) for item in listed if os.path.lexists(item.path))
    missing = tuple(
        Missing(item.source, item.video, _split(item), told_by(table, root))
        for item in listed
        if not os.path.lexists(item.path)
    )
    return Listing(dataset, videos, missing, _notes(listed))


def _check_one_row_each(listed: Iterable[Listed], table: Path) -> None:
    for item in listed:
        if item.frame:
            raise InputError(
                f"{table}: video {item.video!r} ({item.source}) has several rows; give each file one row "
                "and no video of its own, and put the frames of a video into a folder, as one row"
            )


def _video(item: Listed, dataset: str) -> Video:
    return Video(
        item.path,
        item.source,
        item.video,
        _split(item),
        f"{dataset}/{item.group}",
        "exact",
        item.identity,
        _kind(item.path),
    )


def _split(item: Listed) -> Split:
    return item.split or draw_split(item.unit, 0, SHARES)


def _kind(path: Path) -> Kind:
    if path.is_dir():
        return "folder"
    if path.name.lower().endswith(_TARS):
        return "archive"
    return "image" if path.suffix.lower() in SUFFIXES else "video"


def _notes(listed: Iterable[Listed]) -> tuple[str, ...]:
    drawn = Counter(_split(item) for item in listed if item.split is None)
    if not drawn:
        return ()
    counts = ", ".join(f"{split} {drawn[split]}" for split in SPLITS)
    return (f"splits drawn for rows without one, by a hash of their group: {counts}",)
