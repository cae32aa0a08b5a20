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
from typing import Any, NotRequired, TypedDict, Unpack

import safetensors.torch
import torch

from dfdet.checkpoints.checkpoint_format import (
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
    problem,
    read_json,
    resolve,
    sha256_of,
    step_folders,
    step_name,
)
from dfdet.checkpoints.retention import mark_best, mark_last, prune, reconcile
from dfdet.errors import WeightsError
from dfdet.runs.atomic import sync_folder, to_json, write_json_atomic, write_synced
from dfdet.runs.patience import patiently
from dfdet.schema import CropRecipe

__all__ = [
    "FROZEN",
    "OPTIMIZER",
    "TRAINED",
    "CheckpointState",
    "LoadedTensors",
    "Parts",
    "Tensors",
    "add_json",
    "latest_valid",
    "load_backbone",
    "load_crop",
    "load_state",
    "load_tensors",
    "mark_best",
    "mark_last",
    "problem",
    "prune",
    "resolve",
    "save",
    "step_name",
    "write",
]

logger = logging.getLogger(__name__)


class Parts(TypedDict):
    """What a checkpoint is made of. The tensors must not change until it is written."""

    state: CheckpointState
    """Where the run stands."""
    trained: Tensors
    """What trains, gathered whole."""
    optimizer: dict[str, Tensors]
    """Slots by trained name; slot names without a slash."""
    config_json: str
    """``Config.to_json()``."""
    crop: CropRecipe
    """How the training faces were cut."""
    backbone: dict[str, Any]
    """Name, pretrained and sha256 of the tower."""
    frozen: NotRequired[Tensors | None]
    """The frozen tensors of a randomly initialised tower: written once, then hard-linked."""
    extra: NotRequired[dict[str, Any] | None]
    """More JSON files by name, as ``threshold.json``."""


_EXTRA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.json")
_RESERVED = {"state.json", "config.json", "crop.json", "backbone.json", CHECKSUMS}


def save(folder: Path, **parts: Unpack[Parts]) -> Path:
    """Writes ``folder/step_<NNNNNNNN>`` and names it in ``last.json``; see :class:`Parts`.

    Killed at any point, it leaves the earlier checkpoints as they were; one of the same step is
    replaced. :class:`dfdet.checkpoints.saver.Saver` does the same in the background.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    target = folder / step_name(parts["state"].step)

    def work() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, **parts)
        mark_last(folder, target)

    patiently(work, f"checkpoint {target}", patience_s=0)
    return target


def write(folder: Path, **parts: Unpack[Parts]) -> Path:
    """Writes ``folder/step_<NNNNNNNN>``; the folder must be there.

    Raises:
        OSError: The storage is full or away; nothing of it is left but a folder that the next write
            removes where that failed too.
    """
    texts, tensors = _contents(parts)
    target = folder / step_name(parts["state"].step)
    temporary = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        _recover(folder)
        temporary.mkdir()  # not its parents: those of a storage that is away must not be made anew
        _write_files(temporary, texts, tensors, _newest_frozen(folder))
        _put_in_place(temporary, target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not made fuller
        raise
    return target


def _contents(parts: Parts) -> tuple[dict[str, str], dict[str, Tensors]]:
    """Texts and tensors by the names of their files."""
    extra = parts.get("extra") or {}
    frozen = parts.get("frozen")
    texts = {
        "state.json": to_json(parts["state"].model_dump(), indent=2),
        "config.json": parts["config_json"],
        "crop.json": parts["crop"].model_dump_json(indent=2),
        "backbone.json": to_json(parts["backbone"], indent=2),
        **{_extra_name(name): to_json(obj, indent=2) for name, obj in extra.items()},
    }
    tensors = {TRAINED: parts["trained"], OPTIMIZER: _flat(parts["optimizer"])}
    return texts, tensors if frozen is None else tensors | {FROZEN: frozen}


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
    for litter in [*folder.glob(".*.json.*.tmp"), *folder.glob("step_*/.*.json.*.tmp")]:
        litter.unlink()


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
            reconcile(folder, load_state(checkpoint))
            return checkpoint
        logger.warning("checkpoint %s: %s; trying the one before", checkpoint, cause)
        problems.append(f"{checkpoint.name}: {cause}")
    if problems:
        raise WeightsError(
            f"{folder}: no checkpoint is usable ({'; '.join(problems)}); remove the folder to begin anew"
        )
    return None
