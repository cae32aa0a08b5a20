"""Celeb-DF++ (arXiv 2507.18015): the reals of Celeb-DF v2 with 22 methods in three scenarios.

Layout: ``Celeb-real``, ``YouTube-real``, ``Celeb-synthesis/{FaceSwap,FaceReenact,TalkingFace}/<method>/``
    and ``List_of_testing_videos.txt``.
Label: by folder, and the list must agree: **in it 1 means real**.
Group of a fake: for FaceSwap (``idA_idB_N``) the video ``idA_N`` of Celeb-DF v2; exact. For FaceReenact
    (``idA_idB_N``) and TalkingFace (``idA_N_...``) none: most animate one picture, so their frames are not
    those of a real, and which video lent it is not documented. Identity: idA, whom the name puts first.
Split: what the list names is test (178 reals; 200, 200 and 300 fakes of each method), all else train; there
    is no val. A folder of which the list names nothing is all test.
Unknown: the real behind reenacted and talking faces. The list divides videos, not groups: most reals have
    test fakes, so little of train is free of leaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from dfdet.errors import InputError
from dfdet.schema import REAL_METHOD
from shards.datasets.celebdf import REAL_FOLDERS, Origin, Place, find_places, real_places, swap_origin
from shards.datasets.walk import folders, text
from shards.source import Listing, ListOptions

_SYNTHESIS = "Celeb-synthesis"
SCENARIOS = ("FaceSwap", "FaceReenact", "TalkingFace")
_PERSON = re.compile(r"(?P<person>id\d+)_.+", re.ASCII | re.DOTALL)


def find(root: Path, options: ListOptions) -> Listing:
    """Lists the reals and every method that is there; the source is the method's folder.

    Raises:
        InputError: No list of test videos, or one that contradicts the folders; a method named real.
    """
    methods = [
        Place(f"{_SYNTHESIS}/{scenario}/{path.name}", text(path.name), _origin_in(scenario))
        for scenario in SCENARIOS
        for path in folders(root / _SYNTHESIS / scenario)
    ]
    if any(place.source == REAL_METHOD for place in methods):
        raise InputError(f"{root / _SYNTHESIS} has a method folder named 'real'; give it another name")
    return find_places("cdfpp", [*real_places(), *methods], _source_of, root, options)


def _source_of(folder: str) -> str | None:
    if folder in REAL_FOLDERS:
        return REAL_METHOD
    parts = PurePosixPath(folder).parts
    known = len(parts) == 3 and parts[0] == _SYNTHESIS and parts[1] in SCENARIOS
    return parts[2] if known else None


def _origin_in(scenario: str) -> Callable[[str], Origin]:
    return swap_origin if scenario == "FaceSwap" else _driven_origin


def _driven_origin(name: str) -> Origin:
    parts = _PERSON.fullmatch(name)
    return Origin(None, parts["person"] if parts else None)
