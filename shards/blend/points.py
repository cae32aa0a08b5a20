"""A user's file of dense landmarks: 68 or 81 points of each crop."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfdet.errors import InputError

_MAKE = "save it with numpy.savez(file, keys=[N] text, points=[N, 68 or 81, 2] in pixels of the crop)"


class DensePoints:
    """Landmarks by sample key, from an ``.npz`` file.

    The file holds the arrays ``keys`` ([N], text: keys of samples) and ``points`` ([N, 68, 2] in the
    order of iBUG 300-W, or [N, 81, 2] with 13 points of the forehead behind them; x and y in pixels
    of the stored crop). Nothing in it is unpickled.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        keys, self._points = _load(path)
        self._rows = {key: row for row, key in enumerate(keys.tolist())}
        if len(self._rows) < len(keys):
            raise InputError(f"{path}: a key occurs twice; give each sample one set of points")

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> NDArray[np.float64]:
        return self._points[self._rows[key]].astype(np.float64)


def _load(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, points = file["keys"], file["points"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as landmarks ({reason}); {_MAKE}") from error
    if keys.ndim != 1 or keys.dtype.kind != "U":
        raise InputError(f"{path}: keys are {keys.dtype} {list(keys.shape)}; {_MAKE}")
    if points.shape not in {(len(keys), 68, 2), (len(keys), 81, 2)} or points.dtype.kind not in "fiu":
        raise InputError(f"{path}: points are {points.dtype} {list(points.shape)}; {_MAKE}")
    if not np.isfinite(points).all():
        raise InputError(f"{path}: some points are not finite; leave such samples out")
    return keys, points
