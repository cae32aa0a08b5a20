"""What a dataset on disk holds: its videos, and all that names and lists tell of them.

Made by ``shards.datasets`` without opening a single video, consumed by ``shards.plan``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dfdet.schema import REAL_METHOD, GroupLevel, Split

Kind = Literal["video", "image", "folder", "archive"]
"""A video file; one image; a folder of frames; a tar (also ``.tar.gz``) of frames."""


@dataclass(frozen=True)
class Video:
    """One video and what the dataset tells of it; an image is a video of one frame.

    Raises:
        ValueError: A fake without a method, or a group that contradicts its level.
    """

    path: Path
    """File or folder, absolute or relative to the working folder; never outside of the root."""
    source: str
    """``real`` or the method, as in keys."""
    video: str
    """Name, unique within the source."""
    split: Split
    """``train``, ``val`` or ``test``; ``all`` where the dataset has no split and none was asked for."""
    group: str | None = None
    """``<dataset family>/<real video id>``."""
    group_level: GroupLevel = "none"
    """``exact``: the very video behind it; ``identity``: only the person; ``none``."""
    identity: str | None = None
    """Person in the real video, where the dataset tells."""
    kind: Kind = "video"
    ready: bool = False
    """Frames are face crops already: they are stored as they are, no face is searched."""
    mask: Path | None = None
    """Video of the manipulated region, frame by frame like this one; a real has that of a fake."""
    compression: str | None = None
    """As ``c23``."""

    def __post_init__(self) -> None:
        if not self.source or not self.video:
            raise ValueError(f"{self.path}: source {self.source!r} and video {self.video!r} must have names")
        if (self.group is None) != (self.group_level == "none"):
            raise ValueError(f"{self.path}: group {self.group!r} contradicts level {self.group_level!r}")

    @property
    def label(self) -> Literal[0, 1]:
        """0 real, 1 fake."""
        return 0 if self.source == REAL_METHOD else 1

    @property
    def name(self) -> str:
        """``<source>/<video>``, for people."""
        return f"{self.source}/{self.video}"


@dataclass(frozen=True)
class Missing:
    """A video that a list or metadata file names, and that is not on the disk."""

    source: str
    video: str
    split: Split
    told_by: str
    """File that names it, relative to the root, or the rule (as ``splits/train.json``)."""


@dataclass(frozen=True)
class Listing:
    """All that was found of a dataset."""

    dataset: str
    """Name with variant, as in keys (``ffpp-c23``)."""
    videos: tuple[Video, ...]
    """In no particular order; names are unique within a source."""
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each: absent lists, files passed over, assumptions."""


@dataclass(frozen=True)
class ListOptions:
    """What a user may say about a dataset; a module refuses what it cannot use."""

    compression: str | None = None
    """``raw``, ``c23`` or ``c40`` (the FF++ family); None: the family's c23."""
    release: str | None = None
    """Release of a dataset that has several, as ``v1`` (DeepSpeak)."""
    splits: Path | None = None
    """Folder of official split lists, where they are not in the dataset's root."""
    labels: Path | None = None
    """CSV of labels, for plain folders of own videos and images."""
    methods: tuple[str, ...] = field(default=())
    """Only these sources (``real`` is always kept); empty: all."""
    name: str | None = None
    """Dataset name in keys, for own folders and ready-made crops."""
