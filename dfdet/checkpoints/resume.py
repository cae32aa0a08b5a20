"""Where a run goes on: the newest whole checkpoint, checked and put into a detector."""

from __future__ import annotations

import logging
from pathlib import Path

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.checkpoint import CheckpointState, LoadedTensors
from dfdet.context import Context, from_first
from dfdet.errors import ShardSetError, WeightsError
from dfdet.model.detector import Detector, frozen_sha256

logger = logging.getLogger(__name__)


def newest(context: Context) -> Path | None:
    """The checkpoint that all ranks go on from; None for a new run."""
    folder = context.run.checkpoints
    found = checkpoint.latest_valid(folder) if context.rank == 0 else None
    step = from_first(checkpoint.load_state(found).step if found else -1, context)
    return context.run.checkpoint(checkpoint.step_name(step)) if step >= 0 else None


def restore(detector: Detector, path: Path) -> LoadedTensors:
    """Puts a checkpoint's weights into a detector that was built from its config.

    Returns:
        The tensors read, among them the optimizer's moments.

    Raises:
        WeightsError: Names or shapes differ, or the frozen weights are not those it was made with.
    """
    loaded = checkpoint.load_tensors(path)
    if loaded.frozen is not None:
        detector.load_frozen(loaded.frozen)
    detector.load_trained(loaded.trained)
    return loaded


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


def check_same_tower(detector: Detector, path: Path, pretrained: str | None) -> str:
    """Refuses frozen weights other than those a checkpoint was trained on; gives their SHA-256.

    Raises:
        WeightsError: The checksums differ.
    """
    recorded, found = checkpoint.load_backbone(path)["frozen_sha256"], frozen_sha256(detector)
    if recorded != found:
        raise WeightsError(
            f"model.pretrained={pretrained}: not the weights that {path} was made with (sha256"
            f" {found[:12]}, there {recorded[:12]}); give the same file"
        )
    return found
