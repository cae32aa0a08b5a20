"""Parts of a training process, made from its config."""

from __future__ import annotations

from typing import Any

import torch

from dfdet.checkpoints.saver import Saver
from dfdet.config import Config
from dfdet.context import Context
from dfdet.data.index import Index
from dfdet.data.loader import Loader
from dfdet.data.plan import unpaired
from dfdet.data.sets import RunData
from dfdet.evaluation.evaluate import thread_resize, worker_threads
from dfdet.model.detector import Detector, frozen_sha256
from dfdet.training import flops


def train_loader(config: Config, index: Index, detector: Detector, device: torch.device) -> Loader:
    """The loader of the training set."""
    data = config.data
    return Loader(
        index,
        crop_scale=data.crop_scale,
        augment=data.augment,
        seed=config.run.seed,
        threads=worker_threads(config),
        prefetch=data.prefetch,
        on_damage=data.on_damage,
        max_damaged=data.max_damaged,
        # On a CPU the threads are 25 times faster than batched tensors.
        rest_on_device=device.type != "cpu",
        resize=thread_resize(config, detector),
        pin=device.type == "cuda",
    )


def saver(config: Config, context: Context) -> Saver:
    """What writes the run's checkpoints, in the first process."""
    engine = config.engine
    return Saver(
        context.run.checkpoints,
        keep_last=engine.keep_last,
        keep_best=engine.keep_best,
        patience_s=engine.storage_patience_s,
        publish=context.run.publish_checkpoints,
    )


def describe_backbone(config: Config, detector: Detector) -> dict[str, Any]:
    """``backbone.json`` of checkpoints."""
    model = config.model
    return {
        "name": model.backbone,
        "pretrained": model.pretrained,
        "image_size": model.image_size,
        "frozen_sha256": frozen_sha256(detector),
    }


def count(config: Config, data: RunData, detector: Detector) -> dict[str, int]:
    """``counts`` of ``result.json``, as far as they are known before the first step."""
    return {
        "trained_parameters": sum(p.numel() for p in detector.trainable().values()),
        "frozen_parameters": sum(tensor.numel() for tensor in detector.frozen().values()),
        "train_samples": len(data.train),
        "unpaired_samples": unpaired(data.train, config.data.sampling),
        "steps_per_epoch": data.steps_per_epoch,
    }


def flops_and_peak(
    config: Config, detector: Detector, device: torch.device
) -> tuple[flops.Flops, flops.Peak]:
    """What an image needs and what a device can give, whose ratio to the time is MFU."""
    return flops.count(detector), flops.peak(device, config.engine.precision)
