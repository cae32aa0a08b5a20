"""UADFV (arXiv 1811.00661): 49 real videos and a fake of each.

Layout: ``real/NNNN.mp4`` and ``fake/NNNN_fake.mp4``.
Label: by folder.
Group of a fake: NNNN, the real that it was made from; exact.
Split: none is published; all is test.
Unknown: the person. A fake of another name gets no group.
"""

from __future__ import annotations

from pathlib import Path

from dfdet.schema import REAL_METHOD
from shards.datasets.lists import lacking, short_of
from shards.datasets.walk import by_stem, videos
from shards.source import Listing, ListOptions, Missing, Video

_SUFFIX = "_fake"


def find(root: Path, options: ListOptions) -> Listing:
    """Lists both folders, all of it test."""
    reals = [_video(path, REAL_METHOD, name, name) for name, path in by_stem(videos(root / "real")).items()]
    fakes = [
        _video(path, "UADFV", name, _real_of(name)) for name, path in by_stem(videos(root / "fake")).items()
    ]
    implied = [
        Missing(REAL_METHOD, real, "test", "names of its fakes")
        for video in fakes
        if (real := _real_of(video.video)) is not None
    ]
    notes = short_of({"real": len(reals), "UADFV": len(fakes)}, {"real": 49, "UADFV": 49})
    return Listing("uadfv", (*reals, *fakes), lacking(implied, reals), tuple(notes))


def _real_of(fake: str) -> str | None:
    return fake.removesuffix(_SUFFIX) if fake.endswith(_SUFFIX) and fake != _SUFFIX else None


def _video(path: Path, source: str, name: str, real: str | None) -> Video:
    group = f"uadfv/{real}" if real else None
    return Video(path, source, name, "test", group, "exact" if group else "none")
