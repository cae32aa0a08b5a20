"""What a checkpoint folder holds and how it is read: names, state, tensors, checksums.

Writing is in :mod:`dfdet.checkpoints.checkpoint`, which gives all of this under its own name too. Weights are
safetensors and all else JSON: reading runs no code of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from dfdet.errors import WeightsError
from dfdet.schema import CropRecipe

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=BaseModel)

FORMAT_VERSION = 1
TRAINED, OPTIMIZER, FROZEN = "trained.safetensors", "optimizer.safetensors", "frozen.safetensors"
CHECKSUMS = "checksums.json"
_STEP = re.compile(r"step_(\d{8,})")


class CheckpointState(BaseModel):
    """Where a run stands."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    step: int = Field(ge=0)
    """Optimizer steps done, skipped ones among them (steps)."""
    epoch: int = Field(ge=0)
    """Epoch that goes on (epochs, from 0)."""
    batch: int = Field(ge=0)
    """Global batches of it that are done (batches)."""
    fingerprint: str
    """Of the data and its plan: a resume on other data is refused."""
    seed: int
    """Seed of everything random; with epoch and batch it is all there is of RNG state."""
    bad_steps: int = Field(0, ge=0)
    """Non-finite steps so far (steps)."""
    metric: float | None = None
    """What chooses checkpoints, at this step; None where it was not evaluated."""
    metric_name: str | None = None
    """Its name."""
    best_metric: float | None = None
    """Best value of the metric that chooses checkpoints; None before the first evaluation."""
    best_step: int | None = None
    """Step it was reached at (steps)."""
    evaluations_since_best: int = Field(0, ge=0)
    """For patience (evaluations)."""
    metrics: dict[str, float | None] = {}
    """Metrics at this step."""
    schedule: dict[str, Any] = {}
    """Learning-rate schedule, for the record."""
    plan: dict[str, Any] = {}
    """Epoch plan, for the record."""
    world: dict[str, Any] = {}
    """World size, stage, versions, for the record; a resume may have others."""


class LoadedTensors(NamedTuple):
    """What a checkpoint holds in tensors, on the CPU."""

    trained: Tensors
    """Parameters and buffers that train, by name."""
    optimizer: dict[str, Tensors]
    """Optimizer slots (``exp_avg``, ``exp_avg_sq``, ``step``) by parameter name."""
    frozen: Tensors | None
    """Frozen tensors of a tower that no weights file can give again."""


def step_name(step: int) -> str:
    """Name of a checkpoint folder, as ``step_00000500``."""
    return f"step_{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob("step_*") if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def named_checkpoint(folder: Path, which: str) -> str | None:
    """The checkpoint that best.json or last.json names; None where there is none."""
    try:
        name = json.loads((folder / f"{which}.json").read_text(encoding="utf-8"))["checkpoint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(name, str) or not _STEP.fullmatch(name):
        raise WeightsError(f"{folder / which}.json: names {name!r}, which is no checkpoint of this folder")
    return name


def resolve(path: Path) -> Path:
    """The checkpoint a user means: itself, or the best (else the last) of a run or checkpoints folder.

    Raises:
        WeightsError: There is none.
    """
    if (path / "state.json").is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    named = [
        folder / name for name in (named_checkpoint(folder, "best"), named_checkpoint(folder, "last")) if name
    ]
    for candidate in [*named, *step_folders(folder)]:
        if (candidate / "state.json").is_file():
            return candidate
        logger.warning("%s: named as a checkpoint but not there", candidate)
    raise WeightsError(
        f"--checkpoint {path}: neither a checkpoint (no state.json) nor a run folder with one;"
        " give <storage>/<name> or one of its checkpoints/step_*"
    )


def problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by their checksums; None if they are whole."""
    try:
        listing = read_json(checkpoint / CHECKSUMS)
        if listing.get("format_version") != FORMAT_VERSION:
            return f"format version {listing.get('format_version')} is not {FORMAT_VERSION}"
        files = dict(listing["files"])
        for name in {"state.json", TRAINED, OPTIMIZER} - files.keys():
            return f"{name} is not listed in {CHECKSUMS}"
        for name, entry in files.items():
            if Path(name).name != name:
                return f"{CHECKSUMS} lists the unsafe name {name!r}"
            if sha256_of(checkpoint / name) != entry["sha256"]:
                return f"{name} fails its checksum"
        load_state(checkpoint)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, WeightsError) as error:
        return str(error)
    return None


def load_state(checkpoint: Path) -> CheckpointState:
    """Where the run stood.

    Raises:
        WeightsError: ``state.json`` is missing, damaged or of another format version.
    """
    return _read_model(checkpoint / "state.json", CheckpointState)


def load_crop(checkpoint: Path) -> CropRecipe:
    """How the training faces were cut."""
    return _read_model(checkpoint / "crop.json", CropRecipe)


def load_backbone(checkpoint: Path) -> dict[str, Any]:
    """The tower's record, as it was given to :func:`save`."""
    return read_json(checkpoint / "backbone.json")


def load_tensors(checkpoint: Path) -> LoadedTensors:
    """All tensors, checked against their checksums. Whether they fit the model is the caller's to ask.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    if cause := problem(checkpoint):
        raise WeightsError(f"checkpoint {checkpoint}: {cause}; give another checkpoint of the run")
    optimizer: dict[str, Tensors] = {}
    for key, tensor in _load(checkpoint / OPTIMIZER).items():
        slot, _, name = key.partition("/")
        optimizer.setdefault(name, {})[slot] = tensor
    frozen = _load(checkpoint / FROZEN) if (checkpoint / FROZEN).exists() else None
    return LoadedTensors(_load(checkpoint / TRAINED), optimizer, frozen)


def _load(path: Path) -> Tensors:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        WeightsError: The file is missing or holds no JSON object.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: holds no JSON object")
    return tree


def _read_model(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise WeightsError(f"{path}: is not of this version's format ({error.errors()[0]['msg']})") from error


def sha256_of(path: Path) -> str:
    """Checksum of a file (hexadecimal)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
