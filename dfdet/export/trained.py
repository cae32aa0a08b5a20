"""What is known of a checkpoint's training: its sets, its result, the software it ran with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dfdet.checkpoints.checkpoint_format import load_state
from dfdet.checkpoints.opened import Opened
from dfdet.config import Config, Data, named_sets
from dfdet.data.files import SetFiles
from dfdet.data.index import make_cache
from dfdet.data.remote import is_url
from dfdet.errors import DfdetError
from dfdet.runs.runfolder import RunFolder
from dfdet.schema import Manifest


@dataclass(frozen=True)
class TrainedSet:
    """A set that a run was given."""

    split: str
    """``train``, ``val`` or ``test``."""
    name: str
    manifest: Manifest | None
    """None where it cannot be read any more."""


@dataclass(frozen=True)
class Trained:
    """A run, as far as its folder still tells of it."""

    step: int | None = None
    """Optimizer steps that the checkpoint has behind it (steps); None for a published file."""
    fingerprint: str | None = None
    """Of the training data and its order."""
    finished: bool = False
    """Whether the run ended and chose this checkpoint."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """By their full names: of the run's end, else of this step."""
    counts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sets: tuple[TrainedSet, ...] = ()


def read(opened: Opened) -> Trained:
    """What the checkpoint's folder, its run and the manifests tell."""
    if opened.folder is None:
        return Trained()
    state = load_state(opened.folder)
    result = _result(opened.folder)
    return Trained(
        step=state.step,
        fingerprint=state.fingerprint,
        finished=bool(result),
        metrics=result.get("metrics") or dict(state.metrics),
        counts=result.get("counts", {}),
        versions=result.get("versions", {}),
        sets=sets(opened.config),
    )


def _result(checkpoint: Path) -> dict[str, Any]:
    """The finished run's ``result.json``, if it is of this checkpoint; else empty."""
    found = RunFolder(checkpoint.parent.parent).read_result() or {}
    best = PurePosixPath(str(found.get("best_checkpoint"))).name
    return found if found.get("status") == "finished" and best == checkpoint.name else {}


def sets(config: Config) -> tuple[TrainedSet, ...]:
    """The sets of a config, with the manifests that are still there."""
    data = config.data
    given = [("train", PurePosixPath(path).stem, path) for path in data.train]
    for split, entries in (("val", data.val), ("test", data.test)):
        given += [(split, name, path) for name, path in named_sets(entries).items()]
    return tuple(TrainedSet(split, name, _manifest(path)) for split, name, path in given)


def _manifest(path: str) -> Manifest | None:
    """Local ones only: a card is not worth a network."""
    if is_url(path):
        return None
    try:
        return SetFiles(path, make_cache(Data())).read_manifest()
    except DfdetError:
        return None
