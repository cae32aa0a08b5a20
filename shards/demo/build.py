"""Builds the demo's three shard sets: ``train``, ``val`` and ``heldout``."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dfdet.errors import InputError, ShardSetError
from dfdet.schema import IMAGE_EXTENSIONS, Split
from shards.demo.methods import HELDOUT_METHODS, TRAINING_METHODS
from shards.demo.video import CROP, DATASET, Encoded, VideoPlan, make_group
from shards.progress import Progress
from shards.sets.manifest import read_manifest
from shards.sets.write import ShardWriter

log = logging.getLogger(__name__)

VERSION = 2
"""Raised whenever the rendering changes, so that older sets are built again."""
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "heldout": "test"}
SHARE = {"train": 0.7, "val": 0.1, "heldout": 0.2}
"""Part of the identities that a set gets."""
MIN_IDENTITIES = 6


def build(
    out: Path,
    seed: int = 0,
    identities: int = 340,
    takes: int = 1,
    frames: int = 3,
    workers: int = 2,
    image_format: str = "webp",
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Renders the demo sets, or finds them made already.

    Equal arguments give equal bytes, whatever ``workers`` is. Each set appears whole or not at all;
    after an interruption only what is missing is built. With ``workers`` above 1 processes are
    spawned, so a program must call this under ``if __name__ == "__main__"``.

    Args:
        out: Folder of the sets.
        seed: Seed of everything drawn.
        identities: Persons over all sets; no person is in two of them.
        takes: Real videos of a person.
        frames: Frames of a video.
        workers: Processes that render.
        image_format: ``webp`` or ``png`` (both lossless), or ``jpg`` (quality 95).
        progress: Told after each video, with the numbers over all sets that are missing.

    Returns:
        The manifest's path for each of ``train``, ``val`` and ``heldout``.

    Raises:
        InputError: An argument is out of range.
    """
    _check(seed, identities, takes, frames, workers, image_format)
    made_by = (
        f"shards.demo {VERSION}: seed={seed} identities={identities} takes={takes} frames={frames}"
        f" image_format={image_format}"
    )
    paths = {name: Path(out) / f"{name}.json" for name in SPLITS}
    missing = [name for name in SPLITS if not _is_made(paths[name], made_by)]
    if missing:
        plans = {name: plan_set(name, seed, identities, takes, frames, image_format) for name in missing}
        step = _counter(progress, sum(map(len, plans.values())))
        with _mapper(workers) as run:
            for name in missing:
                _write_set(Path(out), name, plans[name], run, made_by, step)
    return paths


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = itertools.count(1)
    return lambda: progress(next(done), total) if progress else None


def _check(seed: int, identities: int, takes: int, frames: int, workers: int, image_format: str) -> None:
    low = {"identities": MIN_IDENTITIES, "takes": 1, "frames": 1, "workers": 1, "seed": 0}
    given = {"identities": identities, "takes": takes, "frames": frames, "workers": workers, "seed": seed}
    for name, value in given.items():
        if value < low[name]:
            raise InputError(f"{name}={value}: the demo needs at least {low[name]}")
    if image_format not in IMAGE_EXTENSIONS:
        raise InputError(f"image_format={image_format!r}: choose one of {', '.join(IMAGE_EXTENSIONS)}")


def _is_made(path: Path, made_by: str) -> bool:
    try:
        return read_manifest(path).written_by == made_by
    except ShardSetError:
        return False


def persons_of(name: str, identities: int) -> range:
    """Numbers of the persons in a set, at least two in each so that faces can be swapped."""
    small = {other: max(2, round(SHARE[other] * identities)) for other in ("val", "heldout")}
    end_train, end_val = identities - sum(small.values()), identities - small["heldout"]
    bounds = {"train": (0, end_train), "val": (end_train, end_val), "heldout": (end_val, identities)}
    return range(*bounds[name])


def plan_set(
    name: str, seed: int, identities: int, takes: int, frames: int, image_format: str
) -> list[VideoPlan]:
    """The videos of a set; a donor of faces is another person of the same set."""
    persons = persons_of(name, identities)
    methods = tuple(HELDOUT_METHODS if name == "heldout" else TRAINING_METHODS)
    return [
        VideoPlan(
            seed=seed,
            split=SPLITS[name],
            identity=person,
            donor=persons[(place + 1 + take % (len(persons) - 1)) % len(persons)],
            take=take,
            frames=frames,
            methods=methods,
            image_format=image_format,
        )
        for place, person in enumerate(persons)
        for take in range(takes)
    ]


Mapper = Callable[[list[VideoPlan]], Iterator[list[Encoded]]]


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """Makes groups in the order of their plans, here or in processes."""
    if workers == 1:
        yield lambda plans: map(make_group, plans)
        return
    # A spawned process inherits no lock of a thread; a killed one raises here instead of hanging.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_interrupts) as pool:
        yield lambda plans: pool.map(make_group, plans, chunksize=2)


def _leave_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_set(
    out: Path, name: str, plans: list[VideoPlan], run: Mapper, made_by: str, step: Callable[[], None]
) -> None:
    log.info("rendering %d videos for %s", len(plans), out / name)
    writer = ShardWriter(
        out,
        name,
        dataset=DATASET,
        split=SPLITS[name],
        crop=CROP,
        max_shard_bytes=16 << 20,
        written_by=made_by,
    )
    with writer:
        for group in run(plans):
            writer.add_group(group)
            step()
