"""A published detector as our own: its file read, its tower and head found, their tensors copied."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.model.backbone import Preprocess, build_tower
from dfdet.model.detector import Detector
from dfdet.model.heads import build_head
from dfdet.model.tuning import apply_tuning
from dfdet.published import raw
from dfdet.published.contents import TOWER, Contents
from dfdet.published.formats import recognise
from dfdet.published.matching import fill
from dfdet.published.pickles import plain
from dfdet.published.towers import Mapped, map_tower
from dfdet.schema import CropRecipe

TOLD = {
    "seed": "run.seed",
    "batch_size": "data.global_batch",
    "loss.ce_labels": "loss.ce",
    "loss.label_smoothing": "loss.label_smoothing",
    "loss.uniformity": "loss.uniformity",
    "loss.alignment_labels": "loss.alignment",
    "lr": "optim.lr",
    "min_lr": "optim.min_lr",
    "weight_decay": "optim.weight_decay",
    "betas": "optim.betas",
    "max_epochs": "optim.epochs",
    "warmup_epochs": "optim.warmup_epochs",
    "num_epochs_in_cycle": "optim.restart_epochs",
    "lr_scheduler": "optim.schedule",
}
"""The authors' hyper-parameters, and ours that mean the same."""
SCHEDULES = {"cosine": "cosine", "cyclic": "restarts", None: "constant"}


@dataclass(frozen=True)
class Published:
    """A detector that others published."""

    config: Config
    """What stands in its place: ``paper`` or ``gend`` with what the file tells, in float32. Built from it
    alone a detector would have random weights, and on DINOv3 another pooling: the tensors are the file's."""
    detector: Detector
    """In evaluation mode, float32, on its device."""
    crop: CropRecipe
    """How its training faces were cut, as published; None where that is not known."""
    threshold: None
    """None is published."""
    kind: str
    """Format, in words."""
    note: str
    """What was assumed, and what of the file is not used; may be empty."""


def load(source: str, *, device: torch.device | str = "cpu") -> Published:
    """Reads a published detector, downloads it if need be; its logits are the authors' (float32, 1e-4).

    Args:
        source: A file, a folder of Hugging Face's form, or ``hf:OWNER/NAME[@REVISION]``.
        device: Where to score.

    Raises:
        ConfigError: No such file.
        WeightsError: Damaged, of an unknown kind, a tower without a head, or tensors missing, left
            over or of other shape.
    """
    contents = recognise(raw.read(source))
    mapped = map_tower(contents, source)
    config, doubts = config_of(contents, mapped)
    detector = _detector(config, contents, mapped, source).to(device).eval()
    return Published(config, detector, contents.crop, None, contents.kind, note_of(contents, mapped, doubts))


def config_of(contents: Contents, mapped: Mapped) -> tuple[Config, tuple[str, ...]]:
    """The recipe with the model's fields and the training values that the file tells, and doubts."""
    config = contents.recipe().replace(
        {
            "model.backbone": mapped.backbone,
            "model.pretrained": None,
            "model.image_size": mapped.image_size,
            "model.normalize": contents.normalize,
            "engine.precision": "fp32",
        }
    )
    try:
        return config.replace(_told(contents)), ()
    except ConfigError as error:
        return config, (f"its training values are not those of a run here ({error}); they were left out",)


def _told(contents: Contents) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for theirs, ours in TOLD.items():
        section, _, name = theirs.rpartition(".")
        group = contents.values.get(section) if section else contents.values
        if isinstance(group, dict) and name in group:
            values[ours] = plain(group[name])
    if "optim.schedule" in values:
        values["optim.schedule"] = SCHEDULES.get(values["optim.schedule"], values["optim.schedule"])
    return values


def build_bare(config: Config, mapped: Mapped) -> tuple[nn.Module, nn.Module, Preprocess]:
    """Tower and head of the detector with random weights, and what its images must look like."""
    tower, preprocess = build_tower(config.model, seed=config.run.seed)
    if mapped.pool:
        tower.trunk.reset_classifier(0, global_pool=mapped.pool)  # type: ignore[operator,union-attr]
    if mapped.interpolation:
        preprocess = dataclasses.replace(preprocess, interpolation=mapped.interpolation)
    dim = tower.output_dim
    assert isinstance(dim, int)
    return tower, build_head(config.model, dim, seed=config.run.seed), preprocess


def _detector(config: Config, contents: Contents, mapped: Mapped, source: str) -> Detector:
    tower, head, preprocess = build_bare(config, mapped)
    fill(tower, mapped.tensors, f"{source} (tower {mapped.backbone})")
    fill(head, contents.head, f"{source} (head)")
    tuning = apply_tuning(tower, config.tuning)
    return Detector(tower, head, preprocess, config.engine.precision, tuning)


def note_of(contents: Contents, mapped: Mapped, doubts: tuple[str, ...]) -> str:
    """One line of what was assumed, and of what in the file no feature depends on."""
    unused = [f"not used: {names}" for names in unused_of(contents, mapped)]
    return "; ".join([*contents.notes, *mapped.notes, *doubts, *unused])


def unused_of(contents: Contents, mapped: Mapped) -> list[str]:
    """Names in the file that nothing depends on, with their counts; numbers of layers as ``*``."""
    names = [*(TOWER + name for name in mapped.unused), *contents.unused]
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{name} ({count})" if count > 1 else name for name, count in counts.items()]
