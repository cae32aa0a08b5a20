"""Which face of each frame is cut: the largest, the one under the manipulation mask, or one person's track.

Cutting the wrong person of a fake gives a real face the label fake, so that a model learns the dataset
instead of the forgery: the choice matters wherever several people are in view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.detect.faces import Faces
from shards.detect.geometry import Floats, area, intersection
from shards.faces.appearance import likeness

Selection = Literal["largest", "mask", "track"]
Mask = NDArray[np.uint8]

MASK_LEVEL = 32
"""Least value of a mask's pixel; video compression leaves lower ones in the black."""
MAX_MOVE = 1.0
"""Between two looks at it, the centre of a face moves less than this (in sides of the face)."""
MAX_GROWTH = 2.0
"""Between two looks at it, the side of a face changes by less than this factor."""
LEAST_LIKENESS = 0.6
"""Between two looks at it, a face keeps more of its colours than this (0 to 1)."""


@dataclass(frozen=True)
class Choice:
    """The face to cut of a frame, and what was known of all its faces."""

    index: int
    """Which face."""
    mask_overlaps: tuple[float | None, ...]
    """Part of each box that the mask covers (0 to 1); None without a mask."""
    tracks: tuple[int | None, ...]
    """Number of each face's track through the video; None where tracks were not formed."""


class _Overlap(NamedTuple):
    """How a mask lies on the N faces of a frame."""

    captured: NDArray[np.float64]
    """Part of the mask's pixels that lie in each box, [N]."""
    covered: NDArray[np.float64]
    """Part of each box, as far as it is in the frame, that the mask covers, [N]."""


def choose(
    faces: Sequence[Faces],
    selection: Selection,
    masks: Sequence[Mask | None],
    sizes: Sequence[tuple[int, int]],
    looks: Sequence[Floats] | None = None,
) -> list[Choice | None]:
    """Chooses a face for each sampled frame of one video; None where there is none to cut.

    - ``largest``: the largest box.
    - ``mask``: the box that holds most of the mask's pixels, the largest where several hold equally
      many; the largest box where the frame has no mask, or an empty one, or none in a box.
    - ``track``: faces are linked to tracks (see :func:`link`). Cut is the track whose boxes hold most
      of the masks over the whole video; without masks the one with the largest sum of score times
      area, relative to the largest face of the same frame: who is there longest wins, not who comes
      close for a moment, nor who sits small behind all the time. Frames without that track give None,
      never another person's face. This holds across cuts too, if ``looks`` are given.

    Args:
        faces: Of each sampled frame, in order of time.
        selection: The rule.
        masks: Mask of the manipulated region [h, w] (0 to 255) of each frame, in any resolution.
        sizes: Width and height of each frame (pixels).
        looks: Colours of each frame's faces (``shards.faces.appearance``), which ``track`` compares: after a
            cut another face may lie where the old one was.

    Raises:
        ValueError: The sequences differ in length.
    """
    overlaps = [
        None if mask is None else _overlap(found.boxes, mask, size)
        for found, mask, size in zip(faces, masks, sizes, strict=True)
    ]
    tracks: Sequence[Sequence[int] | None] = [None] * len(faces)
    if selection == "track":
        tracks = linked = link(faces, looks)
        chosen = _track_members(faces, linked, overlaps)
    else:
        used = overlaps if selection == "mask" else [None] * len(faces)
        chosen = [_best(found, overlap) for found, overlap in zip(faces, used, strict=True)]
    return [
        None if index is None else _choice(index, len(faces[frame].boxes), overlaps[frame], tracks[frame])
        for frame, index in enumerate(chosen)
    ]


def _choice(index: int, count: int, overlap: _Overlap | None, tracks: Sequence[int] | None) -> Choice:
    unknown = (None,) * count
    covered = unknown if overlap is None else tuple(overlap.covered.tolist())
    return Choice(index, covered, unknown if tracks is None else tuple(tracks))


def _best(found: Faces, overlap: _Overlap | None) -> int | None:
    """The face that captures most of the mask; of equal ones the largest, then the first."""
    if not len(found.boxes):
        return None
    captured = np.zeros(len(found.boxes)) if overlap is None else overlap.captured
    return int(np.lexsort((-area(found.boxes), -captured))[0])


def _track_members(
    faces: Sequence[Faces], tracks: Sequence[Sequence[int]], overlaps: Sequence[_Overlap | None]
) -> list[int | None]:
    """Which face of each frame belongs to the best track."""
    totals: dict[int, tuple[float, float]] = {}
    for found, numbers, overlap in zip(faces, tracks, overlaps, strict=True):
        areas = area(found.boxes)
        weights = found.scores * areas / max(areas.max(initial=0), 1e-6)
        captured = np.zeros(len(numbers)) if overlap is None else overlap.captured
        for number, share, weight in zip(numbers, captured, weights, strict=True):
            before = totals.get(number, (0.0, 0.0))
            totals[number] = (before[0] + float(share), before[1] + float(weight))
    best = max(totals, key=lambda number: (*totals[number], -number), default=None)
    return [numbers.index(best) if best in numbers else None for numbers in tracks]


def link(faces: Sequence[Faces], looks: Sequence[Floats] | None = None) -> list[list[int]]:
    """Track number of each face of each frame.

    Sampled frames may lie a second apart, so that boxes of one person need not overlap. A face may
    continue a track if its centre moved by less than :data:`MAX_MOVE` sides, its side changed by less
    than :data:`MAX_GROWTH` and it keeps :data:`LEAST_LIKENESS` of its colours, since the track was last
    seen, however long ago. The cost of a link is the move in sides, plus the change of the logarithm
    of the side, plus 1 - IoU; the cheapest links are made first, each track and each face at most once.
    """
    colours = looks if looks is not None else [np.ones((len(found.boxes), 1), np.float32) for found in faces]
    seen: list[_Seen] = []
    numbers = []
    for found, looked in zip(faces, colours, strict=True):
        new = [_Seen(box, look) for box, look in zip(found.boxes, looked, strict=True)]
        continued = _assign(seen, new)
        own = []
        for face, each in enumerate(new):
            track = continued.get(face, len(seen))
            seen[track : track + 1] = [each]
            own.append(track)
        numbers.append(own)
    return numbers


class _Seen(NamedTuple):
    box: Floats
    look: Floats


def _assign(seen: Sequence[_Seen], new: Sequence[_Seen]) -> dict[int, int]:
    """Track that each face continues, by the last look at each track."""
    tracks: dict[int, int] = {}
    for _, track, face in sorted(_links(seen, new)):
        if face not in tracks and track not in tracks.values():
            tracks[face] = track
    return tracks


def _links(seen: Sequence[_Seen], found: Sequence[_Seen]) -> Iterator[tuple[float, int, int]]:
    """Cost, track and face of each link that is possible."""
    if not seen or not found:
        return
    last, new = np.stack([each.box for each in seen])[:, None], np.stack([each.box for each in found])[None]
    alike = np.array([[likeness(old.look, each.look) for each in found] for old in seen])
    sides, others = np.sqrt(np.maximum(area(last), 1e-6)), np.sqrt(np.maximum(area(new), 1e-6))
    move = np.linalg.norm(_centre(last) - _centre(new), axis=-1) / np.maximum(sides, others)
    growth = abs(np.log(sides / others))
    shared = intersection(last, new)
    cost = move + growth + 1 - shared / (sides**2 + others**2 - shared)
    possible = (move < MAX_MOVE) & (growth < np.log(MAX_GROWTH)) & (alike > LEAST_LIKENESS)
    for track, face in np.argwhere(possible):
        yield float(cost[track, face]), int(track), int(face)


def _centre(boxes: Floats) -> Floats:
    return (boxes[..., :2] + boxes[..., 2:]) * np.float32(0.5)


def _overlap(boxes: Floats, mask: Mask, size: tuple[int, int]) -> _Overlap:
    """A mask pixel lies in a box if its middle does."""
    on = mask >= MASK_LEVEL
    scale = np.array([mask.shape[1] / size[0], mask.shape[0] / size[1]] * 2)
    limits = np.array([mask.shape[1], mask.shape[0]] * 2)
    corners = np.ceil(boxes * scale - 0.5).clip(0, limits).astype(int)
    parts = [on[y0:y1, x0:x1] for x0, y0, x1, y1 in corners]
    inside = np.array([part.sum() for part in parts], float)
    pixels = np.array([part.size for part in parts], float)
    return _Overlap(inside / max(1, on.sum()), inside / np.maximum(pixels, 1))
