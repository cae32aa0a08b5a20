"""The videos that a checkpoint gets most wrong, with the frame that stands for each."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape

import cv2
import numpy as np
import simplejpeg
from isal import isal_zlib
from numpy.typing import NDArray

from dfdet.data.crops import crop_side
from dfdet.data.index import Index
from dfdet.data.prepare import Prepare
from dfdet.data.ranges import fetch_range
from dfdet.data.reader import DamageError, Reader
from dfdet.data.remote import ObjectError, Remote
from dfdet.errors import DfdetError
from dfdet.evaluation.report.facts import Case, number_text, video_text
from dfdet.html.page import paragraph

SHOWN, SHOWN_ON_PAGE, FEWEST = 12, 480, 3
"""Pictures of a kind for a checkpoint on a set, of the whole page, and of a kind where they are many."""
SIDE_PX, QUALITY = 112, 80


@dataclass(frozen=True)
class Mistake:
    """A video at the wrong end of the ranking."""

    video: str
    method: str
    score: float
    verdict: str
    """What the threshold makes of it; empty without one."""
    frame: int
    """Number of the frame whose score is nearest the video's."""


class Pictures:
    """Reads crops of a set as the checkpoint saw them, as JPEG data URIs.

    Of a remote tar without a copy in the cache only the bytes of the crops are fetched, if the storage
    gives ranges.

    Args:
        index: Of the set.
    """

    def __init__(self, index: Index) -> None:
        self._index, self._reader, self._prepare = index, Reader(index.shards, index.cache), Prepare(2**20)

    def close(self) -> None:
        """Closes the tars."""
        self._reader.close()

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self._index.videos)}

    def uri(self, video: str, frame: int, crop_scale: float) -> str:
        """A frame of a video.

        Raises:
            DamageError: Its bytes cannot be used.
            DfdetError: A remote shard cannot be fetched.
        """
        index = self._index
        [row, *_] = np.flatnonzero((index.video == self._codes[video]) & (index.frame == frame)).tolist()
        width, height = int(index.width[row]), int(index.height[row])
        side = crop_side(width, height, crop_scale, float(index.shard_scale[index.shard[row]]))
        crop = self._prepare.crop(self._data(row), min(width, height), side, None)
        return _uri(crop)

    def _data(self, row: int) -> bytes:
        """The stored image, its checksum compared."""
        columns = (self._index.shard, self._index.offset, self._index.size, self._index.crc32)
        shard, offset, size, crc32 = (int(column[row]) for column in columns)
        where, cache = self._index.shards[shard], self._index.cache
        found = None
        if isinstance(where, Remote) and not cache.holds(where):
            try:
                found = fetch_range(where, offset, size, cache.retries)
            except ObjectError as error:
                raise DamageError(error.reason, str(error)) from error
        if found is None:
            return self._reader.read(shard, offset, size, crc32)
        if isal_zlib.crc32(found) != crc32:
            raise DamageError("crc", f"{where}: the bytes at {offset} were changed where they lie")
        return found


def _uri(crop: NDArray[np.uint8]) -> str:
    shrunk = cv2.resize(np.ascontiguousarray(crop), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(shrunk), quality=QUALITY, colorspace="RGB")
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def shown_each(groups: int) -> int:
    """Pictures of a kind for each of some checkpoints on sets, so that the page stays small."""
    return max(FEWEST, min(SHOWN, SHOWN_ON_PAGE // max(1, 2 * groups)))


def worst(case: Case, label: int, most: int) -> list[Mistake]:
    """The reals of the highest scores, or the fakes of the lowest.

    Args:
        case: A checkpoint on a set.
        label: 0 for reals, 1 for fakes.
        most: Videos at most.
    """
    units = case.videos
    rows = np.flatnonzero(units.label == label)
    order = rows[np.argsort(units.score[rows] * (1 if label else -1), kind="stable")][:most]
    return [_mistake(case, row, label) for row in order.tolist()]


def _mistake(case: Case, row: int, label: int) -> Mistake:
    units, score = case.videos, float(case.videos.score[row])
    of_video = case.scored.codes("video")[0] == units.video[row]
    gaps = np.abs(case.scored.column("score")[of_video].astype(np.float64) - score)
    frame = int(case.scored.column("frame")[of_video][np.argmin(gaps)])
    verdict = ""
    if case.threshold is not None:
        wrong = (score >= case.threshold) != bool(label)
        verdict = ("miss" if label else "false alarm") if wrong else "called right"
    return Mistake(units.videos[units.video[row]], units.methods[units.method[row]], score, verdict, frame)


def gallery(case: Case, pictures: Pictures, most: int) -> str:
    """Both kinds as HTML, with a sentence in place of what cannot be read."""
    parts = []
    for label, title in ((0, "Reals with the highest scores"), (1, "Fakes with the lowest scores")):
        found = worst(case, label, most)
        if found:
            parts += [f"<h4>{title}</h4>", _strip(found, pictures, case.found.model.crop_scale)]
    return "\n".join(parts)


def _strip(found: list[Mistake], pictures: Pictures, crop_scale: float) -> str:
    images: list[str | None] = []
    reason = ""
    for uri, problem in _read(found, pictures, crop_scale):
        images.append(uri)
        reason = reason or problem
    said = f"Not all pictures can be read: {reason}"
    if not any(images):
        said = f"The pictures cannot be read any more: {reason}"
    captions = "".join(_box(mistake, uri) for mistake, uri in zip(found, images, strict=True))
    note = paragraph(said, "muted") if reason else ""
    return f'{note}<div class="faces">{captions}</div>'


def _read(found: list[Mistake], pictures: Pictures, crop_scale: float) -> Iterator[tuple[str | None, str]]:
    """Pictures, or why there is none; a storage that fails once is not asked again."""
    gone = ""
    for mistake in found:
        if gone:
            yield None, gone
            continue
        try:
            yield pictures.uri(mistake.video, mistake.frame, crop_scale), ""
        except (DamageError, OSError) as error:
            yield None, str(error)
        except DfdetError as error:
            gone = str(error)
            yield None, gone


def _box(mistake: Mistake, uri: str | None) -> str:
    """A picture with its caption."""
    image = f'<img src="{uri}" width="{SIDE_PX}" height="{SIDE_PX}" alt="">' if uri else ""
    verdict = f'<br><span class="{_KINDS.get(mistake.verdict, "")}">{mistake.verdict}</span>'
    return (
        f"<figure>{image}<figcaption><b>{number_text(mistake.score)}</b> {escape(mistake.method)}"
        f"{verdict if mistake.verdict else ''}"
        f"<br>{escape(video_text(mistake.video))}, frame {mistake.frame}</figcaption></figure>"
    )


_KINDS = {"miss": "worse", "false alarm": "worse"}
