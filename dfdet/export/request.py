"""What an export is asked for, opened and checked before anything is computed or written."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dfdet.checkpoints import fetched
from dfdet.checkpoints.checkpoint_format import step_folders
from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.config import Section, named_sets
from dfdet.data.crops import check_crop_scale
from dfdet.data.index import Index, make_cache, open_sets
from dfdet.data.remote import is_url
from dfdet.errors import ConfigError, DfdetError, RunFolderError, ShardSetError, WeightsError
from dfdet.evaluation.threshold import Threshold
from dfdet.export import hugging_face
from dfdet.export.staging import check_out
from dfdet.runs.runfolder import RunFolder

logger = logging.getLogger(__name__)

Precision = Literal["float32", "float16", "bfloat16", "int8"]

TEMPORAL = "The temporal head is not part of the graphs: scores are those of frames."


class Options(Section):
    """Write a checkpoint as a bundle that other programs load, and prove that it scores alike."""

    checkpoint: str
    """Checkpoint or run folder (its best), a published file, or hf:OWNER/NAME."""
    out: str
    """Folder to write; it must not be there, or be empty."""
    val: tuple[str, ...] = Field((), max_length=1)
    """Set that the graphs are compared on, as NAME=SET.json. None: the run's first validation set where
    it can still be read, else synthetic crops."""
    evaluation: str | None = None
    """Folder of an evaluation of this checkpoint: its metrics are told in the card, and its threshold is
    taken where the checkpoint has none."""
    precisions: tuple[Precision, ...] = ("float32",)
    """float32, which is always written, and lower ones: int8 (for CPUs), float16, bfloat16 (torch only)."""
    threshold: bool = True
    """Whether to insist on a threshold: --no-threshold exports without one."""
    bound: float = Field(0.002, gt=0, le=1)
    """What a lower precision may cost at most: drop of AUROC; a score may change by ten times that."""
    force: bool = False
    """Write a lower precision even if it costs more; the bundle says so."""
    hugging_face: bool = False
    """Write huggingface/ too, for transformers (CLIP towers)."""
    triton: bool = False
    """Write triton/ too, a model repository."""
    kserve: bool = False
    """Write kserve.yaml too, and triton/, which it serves."""
    pretrained: str | None = None
    """The tower's weights, where they are not any more where training found them."""
    crops: int = Field(1000, ge=1)
    """Crops that the graphs are compared on, at most (crops)."""


@dataclass(frozen=True)
class Request:
    """All that an export needs, opened."""

    options: Options
    name: str
    """Of the bundle: that of the run or file."""
    opened: Opened
    threshold: Threshold | None
    sample: tuple[str, Index] | None
    """Name and index of the set that graphs are compared on; None: synthetic crops."""
    evaluated: dict[str, Any] | None
    """This checkpoint's part of an evaluation's ``result.json``."""
    notes: tuple[str, ...]
    """What a user of the bundle should know of how it was made."""


def open_request(options: Options) -> Request:
    """Opens and checks; paths must be absolute.

    Raises:
        ConfigError: A flag that cannot be followed.
        RunFolderError: ``--out`` cannot be written, or the run is not finished.
        WeightsError: A checkpoint that cannot be opened, or has no threshold.
        ShardSetError: A set that cannot be opened, or whose faces were cut in another way.
    """
    check_out(Path(options.out))
    _refuse_unfinished(options.checkpoint)
    evaluation = _read_evaluation(options.evaluation)
    given = _open_given(options.val)
    opened = open_checkpoint(options.checkpoint, pretrained=options.pretrained)
    if options.hugging_face:
        hugging_face.check(opened.detector, opened.config.model.backbone)
    evaluated = _own_part(evaluation, opened, options)
    threshold = _threshold(options, opened, evaluated)
    notes = [TEMPORAL] if opened.config.model.temporal else []
    if given:
        _check_cut(*given, opened)
    sample = given or own_set(opened, notes)
    return Request(options, name_of(opened), opened, threshold, sample, evaluated, tuple(notes))


def name_of(opened: Opened) -> str:
    """Name of the run, file or repository, of letters, digits, dot, hyphen and underscore."""
    name = opened.config.run.name if opened.folder else None
    name = name or Path(opened.source.removeprefix("hf:")).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "detector"


def _refuse_unfinished(source: str) -> None:
    """A run folder stands for the run's last word; a checkpoint folder is what it is."""
    path = Path(source)
    if is_url(source):
        copy = Path(fetched.local(source))
        path = copy if source.rstrip("/").endswith(copy.name) else copy.parents[1]
    run = path.parent if path.name == "checkpoints" else path
    steps = step_folders(run / "checkpoints")
    if (path / "state.json").exists() or not steps:
        return
    result = RunFolder(run).read_result() or {}
    if (status := result.get("status", "no result.json")) != "finished":
        step = f"{source.rstrip('/').removesuffix('/checkpoints')}/checkpoints/{steps[0].name}"
        raise RunFolderError(
            f"--checkpoint {source}: the run is not finished ({status}); train it to its end with the same"
            f" --run.name, or export one of its checkpoints as it is: --checkpoint {step}"
        )


def _read_evaluation(folder: str | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    path = Path(folder) / "result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--evaluation {folder}: no finished evaluation ({path.name}: {error}); give the folder that"
            " ray_jobs/evaluate.py wrote"
        ) from error


def _own_part(evaluation: dict[str, Any] | None, opened: Opened, options: Options) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    for part in evaluation.values():
        if part["fingerprint"] == opened.fingerprint:
            return part
    raise ConfigError(
        f"--evaluation {options.evaluation}: is of other checkpoints ({', '.join(evaluation)}); evaluate"
        f" {options.checkpoint} itself"
    )


def _threshold(options: Options, opened: Opened, evaluated: dict[str, Any] | None) -> Threshold | None:
    if not options.threshold:
        return None
    found = opened.threshold
    if found is None and evaluated and evaluated["threshold"]:
        found = Threshold.model_validate(evaluated["threshold"])
    if found is None:
        remedy = (
            f"python ray_jobs/evaluate.py --checkpoint {options.checkpoint} --val NAME=SET.json --test ..."
        )
        then = " --out FOLDER and give --evaluation FOLDER" if opened.folder is None else ""
        raise WeightsError(
            f"--checkpoint {options.checkpoint}: has no threshold; fit one ({remedy}{then}), or export"
            " without it: --no-threshold"
        )
    return found


def _open_given(entries: tuple[str, ...]) -> tuple[str, Index] | None:
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--val {entry}: give NAME=SET.json, as ffpp=shards/ffpp-val.json")
        return name, open_sets([path])
    return None


def _check_cut(name: str, index: Index, opened: Opened) -> None:
    """Refuses a set whose faces were aligned in another way: scores on it would say nothing."""
    check_crop_scale(index, opened.config.data.crop_scale)
    if index.crop.template != opened.crop.template:
        raise ShardSetError(
            f"--val {name}: its faces were aligned to template {index.crop.template!r}, those of training to"
            f" {opened.crop.template!r}; give a set that was cut alike"
        )


def own_set(opened: Opened, notes: list[str]) -> tuple[str, Index] | None:
    """The run's first validation set; None, with a note of why, where it cannot be read any more."""
    if opened.folder is None:
        notes.append("A published file names no validation set: the graphs were compared on synthetic crops.")
        return None
    for name, path in list(named_sets(opened.config.data.val).items())[:1]:
        try:
            index = open_sets([path], mix_crops=True, cache=make_cache(opened.config.data))
            check_crop_scale(index, opened.config.data.crop_scale)
        except DfdetError as error:
            logger.warning("validation set %s: %s; synthetic crops take its place", name, error)
            notes.append(
                f"The run's validation set {name} could not be read: the graphs were compared on synthetic"
                " crops."
            )
            return None
        return name, index
    notes.append("The run had no validation set: the graphs were compared on synthetic crops.")
    return None
