"""One video -> its face crops, encoded: read, detect, choose, align, encode.

Nothing that goes wrong with a video leaves this module but as a recorded reason.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dfdet.errors import DfdetError
from dfdet.schema import CropRecipe, Failure, Sample, Shortfall, encode_part
from shards.detect.faces import Detector, DetectorError, Image
from shards.faces.align import Matrix, crop
from shards.faces.choose import Choice, choose
from shards.faces.looks import Look, record
from shards.media.decode import Stored, StoreFormat, encode
from shards.media.footage import Footage, open_footage, read_masks
from shards.media.frames import outward, pick
from shards.media.recompress import recompressed
from shards.media.video import UnusableVideoError
from shards.options import VideoSets
from shards.plan import Job
from shards.sets.write import Item
from shards.source import Video

_log = logging.getLogger(__name__)

CHUNK_BYTES = 96 << 20
"""Frames that are held decoded at a time."""
MAX_TRIES = 8
"""Frames that ``at_least`` looks at, as a multiple of the faces it is to find."""


@dataclass
class Prepared:
    """What became of a video."""

    items: list[Item] = field(default_factory=list)
    failure: Failure | None = None
    shortfall: Shortfall | None = None
    frames: int = 0
    """Frames that were read."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time spent in ``read``, ``detect``, ``recompress``, ``align`` and ``encode``."""


class Preparer:
    """Prepares videos of one dataset by one recipe.

    Args:
        options: How frames are picked and stored.
        dataset: Dataset with variant.
        recipe: Crop recipe of all samples.
        detector: Finds the faces; None for ready crops.
    """

    def __init__(
        self, options: VideoSets, dataset: str, recipe: CropRecipe, detector: Detector | None
    ) -> None:
        self.options, self.dataset, self.recipe, self.detector = options, dataset, recipe, detector

    def __call__(self, job: Job) -> Prepared:
        """Prepares one video; whatever is wrong with it stands in the result.

        Raises:
            DetectorError: The detector failed (a GPU without memory, a dead actor).
            StorageAwayError: The file cannot be reached for the moment.
        """
        cv2.setNumThreads(1)  # One process a core does the scaling.
        attempt = _Attempt(self, job)
        try:
            attempt.run()
        except UnusableVideoError as error:
            return attempt.failed(str(error))
        except DfdetError:
            raise  # The detector or the storage failed: no fault of the video.
        except MemoryError:
            return attempt.failed("does not fit into memory")
        except Exception as error:  # noqa: BLE001 - decoders raise nearly anything; --max_failed bounds it.
            _log.debug("%s", job.video.path, exc_info=True)
            return attempt.failed(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return attempt.result()


def failed(job: Job, reason: str, dataset: str) -> Prepared:
    """The record of a video that gives no face."""
    video = job.video
    return Prepared(
        failure=Failure(
            video=_name(job, dataset),
            label=video.label,
            reason=reason,
            group=video.group,
            group_level=video.group_level,
            identity=video.identity,
        )
    )


class _Attempt:
    """A video on its way, with what was lost on it."""

    def __init__(self, by: Preparer, job: Job) -> None:
        self.by, self.job, self.video, self.options = by, job, job.video, by.options
        self.prepared = Prepared()
        self.asked = 0
        self.waiting: dict[int, tuple[Matrix, dict[str, Any]]] = {}
        """Faces to cut of frames after re-compression, by position: the map to the crop, and what a sample
        records."""
        self.reasons: Counter[str] = Counter()
        """Frames that gave no face, by reason."""
        self.notes: set[str] = set()
        self.problem: str | None = None

    def run(self) -> None:
        with self._timed("read"):
            footage = open_footage(self.video)
        with footage:
            length = self._usable_length(footage)
            if self.video.ready:
                self._store(footage, self._picked(length))
            elif self.options.pick == "at_least" and self.video.kind != "image":
                self._find_at_least(footage, length)
            else:
                positions = self._picked(length)
                self.asked = len(positions)
                self._keep(footage, self._cut(footage, positions))
            if self.waiting:
                self._cut_recompressed(footage)
            self.problem = footage.problem
            self.notes.update([footage.note] if footage.note else [])
        self.prepared.items.sort(key=lambda item: item[0].frame)

    def _usable_length(self, footage: Footage) -> int:
        """Frames that the video and its siblings have in common."""
        least = 1 if self.video.kind == "image" or self.video.ready else self.options.min_frames
        if footage.length < least:
            note = f" ({footage.note})" if footage.note else ""
            raise UnusableVideoError(
                f"is too short: {footage.length} frames, fewer than --min_frames {least}{note}"
            )
        with self._timed("read"):
            lengths = [_length(other) for other in self.job.siblings]
        return min([footage.length, *(length for length in lengths if length >= least)])

    def _picked(self, length: int) -> list[int]:
        if self.video.kind == "image":
            return [0]
        how = "uniform" if self.options.pick == "at_least" else self.options.pick
        seed_text = f"{self.options.seed}/{self.job.unit}"
        return pick(length, self.options.frames, how, seed_text=seed_text, stride=self.options.stride)

    def _find_at_least(self, footage: Footage, length: int) -> None:
        wanted = self.options.frames
        order = islice(outward(length), MAX_TRIES * wanted)
        looks: list[Look] = []
        while (lacking := wanted - self._kept - self._chosen(looks)) > 0:
            positions = sorted(islice(order, lacking))
            if not positions:
                break
            self.asked += len(positions)
            looks = sorted(looks + self._cut(footage, positions), key=lambda look: look.position)
        self._keep(footage, looks)

    def _store(self, footage: Footage, positions: Sequence[int]) -> None:
        """Ready crops, as they are or encoded alike."""
        store: StoreFormat = "keep" if self.options.format == "auto" else self.options.format
        self.asked = len(positions)
        for position, result in footage.stored(positions, store, self.options.quality):
            if isinstance(result, Stored):
                self.prepared.frames += 1
                sample = self._sample(footage.numbers[position])
                self.prepared.items.append((sample, *result))
            else:
                self.reasons[result] += 1

    def _cut(self, footage: Footage, positions: Sequence[int]) -> list[Look]:
        """Looks at frames and cuts their faces; gives back what only all frames together decide."""
        looks: list[Look] = []
        for chunk in self._chunks(footage, positions):
            looks += self._look(chunk)
            if self.options.selection != "track":
                self._keep(footage, looks)
                looks = []
        return looks

    def _chunks(self, footage: Footage, positions: Sequence[int]) -> Iterator[list[tuple[int, Image]]]:
        frames = iter(footage.frames(positions))
        chunk: list[tuple[int, Image]] = []
        while True:
            with self._timed("read"):
                found = next(frames, None)
            if found is not None:
                self.prepared.frames += 1
                chunk.append(found)
            if chunk and (found is None or (len(chunk) + 1) * chunk[0][1].nbytes > CHUNK_BYTES):
                yield chunk
                chunk = []
            if found is None:
                return

    def _look(self, chunk: Sequence[tuple[int, Image]]) -> list[Look]:
        assert self.by.detector is not None, "only ready crops need no detector"
        try:
            with self._timed("detect"):
                found = self.by.detector([image for _, image in chunk])
        except Exception as error:
            raise DetectorError(
                f"the detector failed at {self.video.path} ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); finished parts are kept, the same command goes on"
            ) from error
        looks = [Look(position, image, faces) for (position, image), faces in zip(chunk, found, strict=True)]
        if self.options.selection == "track":
            with self._timed("align"):
                for look in looks:
                    look.cut_all(self.by.recipe)
        return looks

    def _keep(self, footage: Footage, looks: Sequence[Look]) -> None:
        for look, choice in zip(looks, self._choices(looks), strict=True):
            if choice is None:
                self.reasons["without a face" if not len(look.faces.scores) else "without the person"] += 1
                continue
            with self._timed("align"):
                cut = look.cut(choice.index, self.by.recipe)
            if isinstance(cut, str):
                self.reasons[f"whose face cannot be aligned ({cut})"] += 1
                continue
            told = record(look, choice, cut)
            if self.options.recompress is None:
                self._add(footage.numbers[look.position], cut.image, told)
            else:
                self.waiting[look.position] = cut.matrix, told

    @property
    def _kept(self) -> int:
        return len(self.prepared.items) + len(self.waiting)

    def _cut_recompressed(self, footage: Footage) -> None:
        """Cuts the faces at their places in the original frames, of frames that were compressed anew."""
        how, size_px = self.options.recompression, self.by.recipe.size_px
        assert how is not None and size_px is not None
        frames = recompressed(footage, how, list(self.waiting))
        while True:
            with self._timed("recompress"):
                found = next(frames, None)
            if found is None:
                break
            position, image = found
            matrix, told = self.waiting.pop(position)
            with self._timed("align"):
                cut = crop(image, matrix, size_px)
            self._add(footage.numbers[position], cut, told)
        if self.waiting:
            self.reasons["that could not be re-compressed"] += len(self.waiting)

    def _choices(self, looks: Sequence[Look]) -> list[Choice | None]:
        return choose(
            [look.faces for look in looks],
            self.options.selection,
            self._masks([look.position for look in looks]),
            [look.size for look in looks],
            [look.colours for look in looks] if self.options.selection == "track" else None,
        )

    def _chosen(self, looks: Sequence[Look]) -> int:
        return sum(choice is not None for choice in self._choices(looks)) if looks else 0

    def _masks(self, positions: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        if self.video.mask is None or self.options.selection == "largest":
            return [None] * len(positions)
        try:
            with self._timed("read"):
                masks = read_masks(self.video.mask, positions)
        except UnusableVideoError as error:
            self.notes.add(f"the mask video {error}")
            masks = {}
        return [masks.get(position) for position in positions]

    def _add(self, number: int, image: Image, told: dict[str, Any]) -> None:
        ext = "webp" if self.options.format == "auto" else self.options.format
        with self._timed("encode"):
            data = encode(image, ext, self.options.quality)
        sample = self._sample(number, **told)
        self.prepared.items.append((sample, ext, data, image.shape[1], image.shape[0]))

    def _sample(self, number: int, **found: Any) -> Sample:
        video = self.video
        return Sample(
            dataset=self.by.dataset,
            source=video.source,
            label=video.label,
            video=video.video,
            frame=number,
            group=video.group,
            group_level=video.group_level,
            identity=video.identity,
            crop=self.by.recipe,
            compression=video.compression,
            split=video.split,
            **found,
        )

    def result(self) -> Prepared:
        """What was found, with the frames that gave nothing counted."""
        prepared = self.prepared
        if unread := self.asked - prepared.frames - self._refused_crops():
            why = f" ({self.problem})" if self.problem else ""
            self.reasons[f"that could not be read{why}"] += unread
        reason = ", ".join(
            [f"{count} {what}" for what, count in sorted(self.reasons.items())] + sorted(self.notes)
        )
        if not prepared.items:
            return self.failed(f"gave no face in {self.asked} frames: {reason}")
        if reason:
            prepared.shortfall = Shortfall(
                video=_name(self.job, self.by.dataset),
                label=self.video.label,
                asked=self.asked,
                read=prepared.frames,
                faces=len(prepared.items),
                reason=reason,
            )
        return prepared

    def _refused_crops(self) -> int:
        return sum(self.reasons.values()) if self.video.ready else 0

    def failed(self, reason: str) -> Prepared:
        """The record of a video that gives no face."""
        record = failed(self.job, reason, self.by.dataset)
        record.frames, record.seconds = self.prepared.frames, self.prepared.seconds
        return record

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.prepared.seconds[what] += time.perf_counter() - begin


@lru_cache(maxsize=4096)
def _length(video: Video) -> int:
    """Frames of a sibling; 0 where it cannot be opened, which its own job records."""
    try:
        with open_footage(video) as footage:
            return footage.length
    except DfdetError:
        raise
    except Exception:  # noqa: BLE001 - as in Preparer.
        return 0


def _name(job: Job, dataset: str) -> str:
    return "/".join(map(encode_part, (dataset, job.video.source, job.video.video)))
