"""Videos of a dataset -> shard sets, one a split: finds, plans, prepares, writes, publishes.

Killed at any moment and started again, only unfinished parts are made again; the sets are then equal,
byte by byte, to those of an undisturbed run with any number of workers.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from dfdet.errors import DfdetError, InputError, ShardSetError
from dfdet.schema import CropRecipe
from shards.datasets import find_videos
from shards.detect import Detector, DetectorOptions, open_detector, resolve
from shards.mapping import Mapper
from shards.media.recompress import encoder_text
from shards.options import SCALE, VideoSets
from shards.parts import PartStore
from shards.plan import SPLITS, Part, Selected, SetPlan, plan_sets, select, variant
from shards.prepare import Prepared, Preparer
from shards.progress import Progress
from shards.sets.manifest import check_apart, read_manifest
from shards.sets.write import ShardWriter, publish
from shards.source import Listing
from shards.version import version

_log = logging.getLogger(__name__)

REASONS_SHOWN = 3


class TooManyFailuresError(DfdetError):
    """More videos than ``--max_failed`` gave no face."""


@dataclass(frozen=True)
class Found:
    """A dataset as it lies on the disk, and what of it is to be written."""

    listing: Listing
    selected: Selected


@dataclass
class Made:
    """What a run made."""

    manifests: list[Path] = field(default_factory=list)
    videos: int = 0
    """Videos that were prepared in this run; those of finished parts do not count."""
    reused: int = 0
    """Videos of parts that a former run had finished."""
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Worker time by stage."""
    wall_s: float = 0.0


@dataclass(frozen=True)
class Making:
    """All that a worker needs to make preparers; picklable."""

    options: VideoSets
    dataset: str
    recipe: CropRecipe
    detector: DetectorOptions | None
    encoder: str | None = None
    """What re-compresses the videos, with its version and options."""

    def __call__(self) -> Preparer:
        """Opens the detector in this process."""
        return self.with_detector(open_detector(self.detector) if self.detector else None)

    def with_detector(self, detector: Detector | None) -> Preparer:
        """A preparer with a detector that is open already, as an actor's."""
        return Preparer(self.options, self.dataset, self.recipe, detector)


def find(options: VideoSets) -> Found:
    """Lists the dataset and selects what is to be written; opens no video.

    Raises:
        InputError: The dataset is not there, a list is wrong, splits share groups, or what is no video
            is to be re-compressed.
    """
    listing = find_videos(options.dataset, options.root, options.listing)
    if options.recompress is not None:
        listing = variant(listing, options.recompress)
    return Found(listing, select(listing, options.only, options.on_leak))


def making(options: VideoSets, found: Found) -> Making:
    """Fixes the recipe; looks for the detector's weights and opens them once.

    Raises:
        InputError: The weights are missing or are none, or the encoder of a re-compression is missing.
    """
    if _ready(found.selected):
        return Making(options, found.listing.dataset, CropRecipe(scale=options.scale), None)
    detector = resolve(
        DetectorOptions(
            kind=options.detector,
            weights=options.weights,
            size_px=options.detector_size,
            threshold=options.threshold,
            nms=options.nms,
            device=options.device,
        )
    )
    encoder = encoder_text(options.recompression) if options.recompression else None
    opened = open_detector(replace(detector, device="cpu"))  # This process may have another GPU, or none.
    recipe = CropRecipe(
        template=options.template,
        scale=options.scale or SCALE,
        size_px=options.size_px,
        detector=opened.name,
        detector_weights_sha256=opened.weights_sha256,
        selection=options.selection,
    )
    return Making(options, found.listing.dataset, recipe, detector, encoder)


def _ready(selected: Selected) -> bool:
    kinds = {video.ready for video in selected.videos}
    if len(kinds) > 1:
        raise InputError("videos and ready crops cannot be mixed in one set; give each a root of its own")
    return kinds.pop()


def make_video_sets(
    make: Making,
    found: Found,
    mapper: Callable[[], Mapper],
    *,
    progress: Progress | None = None,
) -> Made:
    """Writes the sets of all splits; they appear together, each whole.

    Args:
        make: Options and recipe.
        found: What to write.
        mapper: Makes what runs the jobs; called only if any job is left.
        progress: Called after each video.

    Raises:
        TooManyFailuresError: More videos than ``max_failed`` gave no face; finished parts stay.
        ShardSetError: No face at all in a split, a leak into sets that are there, or the folder
            cannot be written.
    """
    options, dataset = make.options, found.listing.dataset
    plans = plan_sets(options, dataset, found.selected, make.recipe, make.encoder)
    _check_sets_beside(options.out, plans)
    begin = time.perf_counter()
    made = Made(manifests=[_path(options.out, plan) for plan in plans])
    todo = [plan for plan in plans if not _is_made(_path(options.out, plan), plan)]
    if todo:
        _Run(make, todo, made, mapper, progress).run()
    made.wall_s = time.perf_counter() - begin
    return made


def _path(out: Path, plan: SetPlan) -> Path:
    return out / f"{plan.name}.json"


def _is_made(path: Path, plan: SetPlan) -> bool:
    try:
        return read_manifest(path).plan_sha256 == plan.sha256
    except ShardSetError:
        return False


def _check_sets_beside(out: Path, plans: Sequence[SetPlan]) -> None:
    """No group of a set to write may lie in a set of another split that is there already."""
    planned = {plan.name for plan in plans}
    for plan in plans:
        groups = {unit[0].video.group for part in plan.parts for unit in part.units} - {None}
        stem = plan.name.removesuffix(f"-{plan.split}")
        for split in SPLITS:
            path = out / f"{stem}-{split}.json"
            if split != plan.split and path.stem not in planned and path.exists():
                check_apart(path, groups, f"the {plan.split} set to write")


class _Run:
    """One run over the sets that are not finished."""

    def __init__(
        self,
        make: Making,
        plans: Sequence[SetPlan],
        made: Made,
        mapper: Callable[[], Mapper],
        progress: Progress | None,
    ) -> None:
        self.make, self.plans, self.made, self.mapper = make, plans, made, mapper
        self.written_by = f"dfdet {version()}: shards {make.options.chosen}"
        if make.encoder is not None:
            self.written_by += f"; re-compressed by {make.encoder}"
        self.progress = progress or (lambda done, total: None)
        self.total = sum(plan.videos for plan in plans)
        self.failures: Counter[str] = Counter()

    def run(self) -> None:
        with ExitStack() as stack:
            stores = [self._store(plan, stack) for plan in self.plans]
            left = [
                (store, part)
                for store, plan in zip(stores, self.plans, strict=True)
                for part in plan.parts
                if not self._has(store, part)
            ]
            if self.made.reused:
                _log.info("%d of %d videos were finished before", self.made.reused, self.total)
            if left:
                results = self.mapper()(job for _, part in left for job in part.jobs)
                for store, part in left:
                    store.write(part.name, self._units(part, results))
            self._publish(stores, stack)

    def _store(self, plan: SetPlan, stack: ExitStack) -> PartStore:
        store = PartStore(
            self.make.options.out,
            plan.name,
            dataset=self.make.dataset,
            split=plan.split,
            crop=self.make.recipe,
        )
        stack.callback(store.release)
        return store

    def _has(self, store: PartStore, part: Part) -> bool:
        if not store.has(part.name):
            return False
        self.made.reused += len(part.jobs)
        if failed := store.failures(part.name):
            self.failures["in parts finished before"] += failed
        return True

    def _units(self, part: Part, results: Iterator[Prepared]) -> Iterator[list[Prepared]]:
        for unit in part.units:
            yield [self._counted(result) for result in itertools.islice(results, len(unit))]

    def _counted(self, result: Prepared) -> Prepared:
        self.made.videos += 1
        self.made.frames += result.frames
        for stage, seconds in result.seconds.items():
            self.made.seconds[stage] += seconds
        if result.failure is not None:
            self.failures[result.failure.reason] += 1
            _log.debug("%s %s", result.failure.video, result.failure.reason)
            self._check_failures()
        self.progress(self.made.videos, self.total - self.made.reused)
        return result

    def _check_failures(self) -> None:
        share, failed = self.make.options.max_failed, self.failures.total()
        if failed > share * self.total:
            often = "; ".join(
                f"{count} {reason}" for reason, count in self.failures.most_common(REASONS_SHOWN)
            )
            raise TooManyFailuresError(
                f"{failed} of {self.total} videos failed, more than --max_failed {share:g} ({often}); mend "
                "the dataset or raise the bound; finished parts are kept"
            )

    def _publish(self, stores: Sequence[PartStore], stack: ExitStack) -> None:
        writers = []
        for store, plan in zip(stores, self.plans, strict=True):
            writer = stack.enter_context(self._writer(plan))
            store.take_over((part.name for part in plan.parts), writer)
            writers.append(writer)
        publish(writers)
        for store in stores:
            store.remove()

    def _writer(self, plan: SetPlan) -> ShardWriter:
        return ShardWriter(
            self.make.options.out,
            plan.name,
            dataset=self.make.dataset,
            split=plan.split,
            crop=self.make.recipe,
            written_by=self.written_by,
            missing=plan.missing,
            plan_sha256=plan.sha256,
        )
