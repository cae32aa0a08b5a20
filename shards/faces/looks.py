"""A frame with its faces: what is cut of it, and what a sample records of the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dfdet.schema import Candidate, CropRecipe
from shards.detect.faces import Faces, Image
from shards.faces.align import Template, crop, map_box, map_points, to_crop
from shards.faces.appearance import appearance
from shards.faces.choose import Choice


@dataclass(frozen=True)
class Cut:
    """A crop and how it was cut."""

    image: Image
    matrix: NDArray[np.float64]
    """Map from the frame to the crop, [2, 3]."""


class Look:
    """A frame and its faces.

    Args:
        position: Of the frame in its footage.
        image: The frame, RGB [H, W, 3].
        faces: What the detector found in it.
    """

    def __init__(self, position: int, image: Image, faces: Faces) -> None:
        self.position, self.faces = position, faces
        self.size = (image.shape[1], image.shape[0])
        self.colours: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        """Of each face, where tracks are formed."""
        self._image: Image | None = image
        self._cuts: list[Cut | str] = []

    def cut_all(self, recipe: CropRecipe) -> None:
        """Cuts every candidate, so that the frame, which takes more memory, can be let go."""
        assert self._image is not None
        self.colours = appearance(self._image, self.faces.boxes)
        self._cuts = [self._cut(index, recipe) for index in range(len(self.faces.scores))]
        self._image = None

    def cut(self, index: int, recipe: CropRecipe) -> Cut | str:
        """The crop of a candidate, or why there is none."""
        return self._cut(index, recipe) if self._image is not None else self._cuts[index]

    def _cut(self, index: int, recipe: CropRecipe) -> Cut | str:
        assert self._image is not None and recipe.scale and recipe.size_px
        try:
            template = cast(Template, recipe.template)
            matrix = to_crop(self.faces.landmarks[index], template, recipe.scale, recipe.size_px)
        except ValueError as error:
            return str(error)
        return Cut(crop(self._image, matrix, recipe.size_px), matrix)


def record(look: Look, choice: Choice, cut: Cut) -> dict[str, Any]:
    """What a sample tells of the face that was cut, and of those that were not."""
    faces, index = look.faces, choice.index
    return {
        "landmarks": _rounded(map_points(faces.landmarks[index], cut.matrix)),
        "score": _score(faces.scores[index]),
        "box": _rounded([map_box(faces.boxes[index], cut.matrix)])[0],
        "candidates": _candidates(faces, choice),
        "chosen": index,
        "to_crop": tuple(map(tuple, cut.matrix.round(6).tolist())),
        "frame_size": look.size,
    }


def _candidates(faces: Faces, choice: Choice) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            box=box,
            score=_score(score),
            mask_overlap=None if overlap is None else round(float(overlap), 4),
            track=track,
        )
        for box, score, overlap, track in zip(
            _rounded(faces.boxes), faces.scores, choice.mask_overlaps, choice.tracks, strict=True
        )
    )


def _score(score: float) -> float:
    return round(min(1.0, max(0.0, float(score))), 5)


def _rounded(points: Any) -> tuple[tuple[float, ...], ...]:
    """Thousandths of a pixel: enough, and a tenth of the text."""
    return tuple(tuple(row) for row in np.asarray(points, np.float64).round(3).tolist())
