"""Where a run goes on: the newest whole checkpoint, checked and put into a detector."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from dfdet import checkpoint
from dfdet.checkpoint import CheckpointState, LoadedTensors, Tensors
from dfdet.context import Context, from_first
from dfdet.detector import Detector, frozen_sha256
from dfdet.errors import ShardSetError, WeightsError

logger = logging.getLogger(__name__)


def newest(context: Context) -> Path | None:
    """The checkpoint that all ranks go on from; None for a new run."""
    folder = context.run.checkpoints
    found = checkpoint.latest_valid(folder) if context.rank == 0 else None
    step = from_first(checkpoint.load_state(found).step if found else -1, context)
    return folder / checkpoint.step_name(step) if step >= 0 else None


def restore(detector: Detector, path: Path) -> LoadedTensors:
    """Puts a checkpoint's weights into a detector that was built from its config.

    Returns:
        The tensors read, among them the optimizer's moments.

    Raises:
        WeightsError: Names or shapes differ, or the frozen weights are not those it was made with.
    """
    loaded = checkpoint.load_tensors(path)
    if loaded.frozen is not None:
        fill(detector.frozen(), loaded.frozen, f"{path}/{checkpoint.FROZEN}")
    fill(detector.trainable(), loaded.trained, f"{path}/{checkpoint.TRAINED}")
    return loaded


@torch.no_grad()
def fill(targets: dict[str, Tensor] | dict[str, torch.nn.Parameter], values: Tensors, source: str) -> None:
    """Copies tensors by name in place.

    Raises:
        WeightsError: Which names are missing or unexpected, or which shape differs.
    """
    missing, unexpected = sorted(targets.keys() - values.keys()), sorted(values.keys() - targets.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{source}: {len(missing)} tensors missing {missing[:3]}, {len(unexpected)} unexpected"
            f" {unexpected[:3]}; it belongs to another model or tuning"
        )
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(values[name].shape)}, the model {list(target.shape)}"
            )
        target.copy_(values[name])


def check_same_data(state: CheckpointState, fingerprint: str, path: Path) -> None:
    """Refuses to go on with other data or another order.

    Raises:
        ShardSetError: The fingerprints differ.
    """
    if state.fingerprint != fingerprint:
        raise ShardSetError(
            f"data.train: not the data or order that checkpoint {path} was made from (fingerprint"
            f" {fingerprint[:12]}, there {state.fingerprint[:12]}); give the sets it began with, or another"
            " --run.name"
        )


def check_same_tower(detector: Detector, path: Path, pretrained: str | None) -> None:
    """Refuses frozen weights other than those a checkpoint was trained on.

    Raises:
        WeightsError: The checksums differ.
    """
    recorded, found = checkpoint.load_backbone(path)["frozen_sha256"], frozen_sha256(detector)
    if recorded != found:
        raise WeightsError(
            f"model.pretrained={pretrained}: not the weights that {path} was made with (sha256"
            f" {found[:12]}, there {recorded[:12]}); give the same file"
        )
