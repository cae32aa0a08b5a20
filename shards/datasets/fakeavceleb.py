"""FakeAVCeleb v1.2 (Khalid et al., arXiv 2108.05080).

Layout: ``{Real,Fake}Video-{Real,Fake}Audio/<race>/<gender>/<id>/<file>.mp4`` and ``meta_data.csv``,
    whose column ``path`` holds the file's name.
Label: by the picture: RealVideo-FakeAudio is real; the folder stands in the video's name (``RVRA``,
    ``RVFA``, ``FVRA``, ``FVFA``). The method is the column ``method``.
Group of a fake: ``fakeavceleb/<id>-<clip>``, exact, where the file's name begins with the name of a
    RealVideo-RealAudio clip of the same person; else ``fakeavceleb/<id>``, identity. The same for
    RealVideo-FakeAudio.
Split: none official; all is test.
Unknown: files that ``meta_data.csv`` does not name have no method, and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfdet.schema import REAL_METHOD
from shards.datasets import walk
from shards.datasets.named import LeftOut, by_path, is_plain, match
from shards.source import Listing, ListOptions, Video

LIST = "meta_data.csv"
TYPES = {
    "RealVideo-RealAudio": "RVRA",
    "RealVideo-FakeAudio": "RVFA",
    "FakeVideo-RealAudio": "FVRA",
    "FakeVideo-FakeAudio": "FVFA",
}


class _Row(NamedTuple):
    path: PurePosixPath
    type: str
    person: str
    method: str


def find(root: Path, options: ListOptions) -> Listing:
    """Videos that ``meta_data.csv`` names and the disk has.

    Raises:
        InputError: ``meta_data.csv`` is missing or lacks a column.
    """
    left_out = LeftOut()
    rows = list(_rows(root, left_out))
    clips = {(row.person, row.path.stem) for row in rows if TYPES[row.type] == "RVRA"}
    present = by_path(root, (path for folder in TYPES for path in walk.tree(root / folder)))
    videos, missing = match(((_video(row, clips), LIST) for row in rows), present, left_out)
    folders = {folder.name for folder in walk.folders(root)}
    absent = tuple(f"{folder} is not there" for folder in TYPES if folder not in folders)
    return Listing("fakeavceleb", tuple(videos), tuple(missing), (*absent, *left_out.notes))


def _rows(root: Path, left_out: LeftOut) -> Iterator[_Row]:
    table = walk.read_csv(root / LIST, ("source", "method", "type", "race", "gender"))
    for line, row in table:
        file = row.get("filename") or row.get("path", "")
        cells = (row["race"], row["gender"], row["source"], PurePosixPath(file).name)
        if row["type"] not in TYPES or not all(map(is_plain, cells)):
            left_out.add(f"rows of {LIST} that name no file of the four folders", f"line {line}: {file}")
        elif row["type"].startswith("Fake") and row["method"].lower() in {"", "-", REAL_METHOD}:
            left_out.add("fakes without a method", file)
        else:
            path = PurePosixPath(row["type"], *cells)
            yield _Row(path, row["type"], row["source"], row["method"])


def _video(row: _Row, clips: Collection[tuple[str, str]]) -> Video:
    stem = row.path.stem
    # 00109_id00010_wavtolip.mp4 was made from 00109.mp4.
    clip = stem if (row.person, stem) in clips else stem.split("_")[0]
    exact = (row.person, clip) in clips
    return Video(
        Path(row.path),
        REAL_METHOD if row.type.startswith("Real") else row.method,
        f"{TYPES[row.type]}-{row.person}-{stem}",
        "test",
        f"fakeavceleb/{row.person}-{clip}" if exact else f"fakeavceleb/{row.person}",
        "exact" if exact else "identity",
        identity=row.person,
    )
