"""Checkpoints: what trains, its moments and the position in the plan, in a folder that is whole or absent.

``step_<NNNNNNNN>/`` holds ``trained.safetensors``, ``optimizer.safetensors``, ``state.json``,
``config.json``, ``crop.json``, ``backbone.json``, for a randomly initialised tower
``frozen.safetensors``, and ``checksums.json`` over all of them. It is written under a hidden name,
synced and renamed; ``last.json`` and ``best.json`` beside it name the newest and the best. One process
writes; any number read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dfdet.atomic import sync_folder, to_json, write_json_atomic, write_synced
from dfdet.checkpoint_format import (
    CHECKSUMS,
    FORMAT_VERSION,
    FROZEN,
    OPTIMIZER,
    TRAINED,
    CheckpointState,
    LoadedTensors,
    Tensors,
    load_backbone,
    load_crop,
    load_state,
    load_tensors,
    named_checkpoint,
    problem,
    read_json,
    resolve,
    sha256_of,
    step_folders,
    step_name,
)
from dfdet.errors import TrainingError, WeightsError
from dfdet.schema import CropRecipe

__all__ = [
    "FROZEN",
    "OPTIMIZER",
    "TRAINED",
    "CheckpointState",
    "LoadedTensors",
    "Tensors",
    "add_json",
    "latest_valid",
    "load_backbone",
    "load_crop",
    "load_state",
    "load_tensors",
    "mark_best",
    "problem",
    "prune",
    "resolve",
    "save",
    "step_name",
]

logger = logging.getLogger(__name__)

_EXTRA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.json")
_RESERVED = {"state.json", "config.json", "crop.json", "backbone.json", CHECKSUMS}


def save(
    folder: Path,
    *,
    state: CheckpointState,
    trained: Tensors,
    optimizer: dict[str, Tensors],
    config_json: str,
    crop: CropRecipe,
    backbone: dict[str, Any],
    frozen: Tensors | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Writes ``folder/step_<NNNNNNNN>`` and names it in ``last.json``.

    Killed at any point, it leaves the earlier checkpoints as they were; one of the same step is
    replaced. ``frozen`` is written once: later checkpoints hard-link equal bytes.

    Args:
        folder: The run's ``checkpoints`` folder.
        state: Where the run stands.
        trained: What trains, gathered whole.
        optimizer: Slots by trained name; slot names without a slash.
        config_json: ``Config.to_json()``.
        crop: How the training faces were cut.
        backbone: Name, pretrained and sha256 of the tower.
        frozen: The frozen tensors of a randomly initialised tower.
        extra: More JSON files by name, as ``threshold.json``.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    texts = {
        "state.json": to_json(state.model_dump(), indent=2),
        "config.json": config_json,
        "crop.json": crop.model_dump_json(indent=2),
        "backbone.json": to_json(backbone, indent=2),
        **{_extra_name(name): to_json(obj, indent=2) for name, obj in (extra or {}).items()},
    }
    tensors = {
        TRAINED: trained,
        OPTIMIZER: _flat(optimizer),
        **({FROZEN: frozen} if frozen is not None else {}),
    }
    target = folder / step_name(state.step)
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        temporary.mkdir()
        _write_files(temporary, texts, tensors, _newest_frozen(folder))
        _put_in_place(temporary, target)
        write_json_atomic(folder / "last.json", {"checkpoint": target.name, "step": state.step})
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {target}: cannot be written ({error.strerror or error}); make room or repair the"
            " storage and start the run again under its name: the checkpoint before is intact"
        ) from error
    return target


def _flat(optimizer: dict[str, Tensors]) -> Tensors:
    """``{name: {slot: tensor}}`` as ``{"slot/name": tensor}``."""
    flat = {f"{slot}/{name}": tensor for name, slots in optimizer.items() for slot, tensor in slots.items()}
    assert not any("/" in slot for slots in optimizer.values() for slot in slots), "a slot holds a slash"
    return flat


def _extra_name(name: str) -> str:
    if name in _RESERVED or not _EXTRA.fullmatch(name):
        raise ValueError(f"extra file {name!r}: must be a plain .json name that no other file has")
    return name


def _write_files(
    folder: Path, texts: dict[str, str], tensors: dict[str, Tensors], earlier_frozen: Path | None
) -> None:
    files = {name: _record(folder / name, text.encode()) for name, text in texts.items()}
    for name, group in tensors.items():
        data = _serialized(group)
        files[name] = _record(folder / name, data, same=earlier_frozen if name == FROZEN else None)
    listing = {"format_version": FORMAT_VERSION, "files": files}
    write_synced(folder / CHECKSUMS, to_json(listing, indent=2).encode())
    sync_folder(folder)


def _record(path: Path, data: bytes, same: Path | None = None) -> dict[str, Any]:
    """Writes a file, or links it to one that holds the same bytes; gives its size and checksum."""
    digest = hashlib.sha256(data).hexdigest()
    if not (same and sha256_of(same) == digest and _linked(same, path)):
        write_synced(path, data)
    return {"bytes": len(data), "sha256": digest}


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False  # a filesystem without hard links
    return True


def _serialized(tensors: Tensors) -> bytes:
    # clones: safetensors refuses views that share storage, as those of a flat buffer do
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(owned)


def _newest_frozen(folder: Path) -> Path | None:
    paths = (checkpoint / FROZEN for checkpoint in step_folders(folder))
    return next((path for path in paths if path.is_file()), None)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Renames; a folder of that name steps aside first, and :func:`_recover` brings it back if need be."""
    aside = target.with_name(f".old-{target.name}")
    if target.exists():
        target.rename(aside)
    temporary.rename(target)
    sync_folder(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _recover(folder: Path) -> None:
    """Finishes or undoes what a kill interrupted; for the one process that writes."""
    for aside in folder.glob(".old-step_*"):
        original = folder / aside.name.removeprefix(".old-")
        if original.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(original)
    for litter in [*folder.glob(".tmp-step_*"), *folder.glob(".gone-step_*")]:
        shutil.rmtree(litter)
    for litter in folder.glob(".*.json.*.tmp"):
        litter.unlink()


def mark_best(folder: Path, checkpoint: Path, metric_name: str | None, value: float | None) -> None:
    """Names a checkpoint of the folder as the best, in ``best.json``."""
    step = int(checkpoint.name.removeprefix("step_"))
    record = {"checkpoint": checkpoint.name, "step": step, "metric": metric_name, "value": value}
    write_json_atomic(folder / "best.json", record)


def _reconcile(folder: Path, state: CheckpointState) -> None:
    """Lets best.json and last.json follow the state that a run goes on from.

    A kill between the two writes, or a damaged newest checkpoint, leaves them naming another.
    """
    if named_checkpoint(folder, "last") != step_name(state.step):
        write_json_atomic(folder / "last.json", {"checkpoint": step_name(state.step), "step": state.step})
    named = named_checkpoint(folder, "best")
    wanted = None if state.best_step is None else step_name(state.best_step)
    if named == wanted:
        return
    logger.warning("%s: best.json names %s, the run's state %s", folder, named, wanted)
    if wanted and (folder / wanted).is_dir():
        recorded = read_json(folder / "best.json").get("metric") if named else None
        mark_best(folder, folder / wanted, recorded, state.best_metric)
    elif named:
        (folder / "best.json").unlink()


def prune(folder: Path, keep_last: int) -> None:
    """Removes all but the newest ``keep_last`` checkpoints, the best and the last."""
    steps = step_folders(folder)
    kept = {path.name for path in steps[:keep_last]} | {
        named_checkpoint(folder, "best"),
        named_checkpoint(folder, "last"),
    }
    for checkpoint in steps:
        if checkpoint.name not in kept:
            gone = checkpoint.with_name(f".gone-{checkpoint.name}")
            checkpoint.rename(gone)  # first: a kill within rmtree must not leave half a checkpoint
            shutil.rmtree(gone)


def add_json(checkpoint: Path, name: str, obj: Any) -> None:
    """Adds or replaces a JSON file of a saved checkpoint, as ``threshold.json``; valid at any point."""
    listing = read_json(checkpoint / CHECKSUMS)
    listing["files"].pop(_extra_name(name), None)
    write_json_atomic(checkpoint / CHECKSUMS, listing)
    write_json_atomic(checkpoint / name, obj)
    data = (checkpoint / name).read_bytes()
    listing["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json_atomic(checkpoint / CHECKSUMS, listing)


def latest_valid(folder: Path) -> Path | None:
    """The newest checkpoint whose files are whole, for the process that resumes; None where there is none.

    ``best.json`` and ``last.json`` follow it.

    Newer ones that are damaged are passed over with a warning. A checkpoint that is newer than
    ``last.json`` counts: the kill came between the two.

    Raises:
        WeightsError: There are checkpoints, but no whole one: going on would silently begin anew.
    """
    if not folder.is_dir():
        return None
    _recover(folder)
    problems = []
    for checkpoint in step_folders(folder):
        cause = problem(checkpoint)
        if cause is None:
            _reconcile(folder, load_state(checkpoint))
            return checkpoint
        logger.warning("checkpoint %s: %s; trying the one before", checkpoint, cause)
        problems.append(f"{checkpoint.name}: {cause}")
    if problems:
        raise WeightsError(
            f"{folder}: no checkpoint is usable ({'; '.join(problems)}); remove the folder to begin anew"
        )
    return None
