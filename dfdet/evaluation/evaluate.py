"""Scores of a shard set, computed by all ranks together and exactly once a sample."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.config import Config
from dfdet.context import Context
from dfdet.data.index import Index
from dfdet.data.loader import Loader
from dfdet.data.plan import sequential_plan
from dfdet.evaluation import metrics
from dfdet.model.detector import Detector
from dfdet.training.gather import all_gather_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Fake probabilities of a set's samples that could be read, in the order of its index."""

    index: Index
    ids: NDArray[np.int64]
    """Samples scored ``[n]``."""
    scores: NDArray[np.float32]
    """Fake probabilities ``[n]`` (0 to 1)."""
    logits: NDArray[np.float32]
    """Fake minus real logit ``[n]``."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """0 real, 1 fake ``[n]``."""
        return self.index.label[self.ids]

    def metrics(self, split: str, name: str, threshold: float | None = None) -> dict[str, float | None]:
        """Frame- and video-level metrics of the set, by their full names."""
        return metrics.compute(
            split,
            name,
            self.labels,
            self.scores,
            self.index.video[self.ids],
            self.index.method[self.ids],
            self.index.methods,
            threshold,
        )


def score_index(
    detector: Detector,
    features_of: Callable[[Tensor], Tensor],
    index: Index,
    config: Config,
    context: Context,
) -> Scores:
    """Scores a set as the config says; see :func:`score_set`."""
    data = config.data
    loader = Loader(
        index,
        crop_scale=data.crop_scale,
        augment=None,
        seed=config.run.seed,
        threads=worker_threads(config),
        prefetch=data.prefetch,
        on_damage=data.on_damage,
        max_damaged=data.max_damaged,
        resize=thread_resize(config, detector),
        pin=context.device.type == "cuda",
    )
    with loader:
        return score_set(detector, features_of, index, loader, config.eval.batch, context)


def worker_threads(config: Config) -> int:
    """Decode threads of a worker: as many as it has CPUs, unless said."""
    return config.data.threads or max(1, int(config.run.cpus_per_worker))


def thread_resize(config: Config, detector: Detector) -> tuple[int, str] | None:
    """Side (pixels) and filter of the resize on the decode threads; None: the device resizes."""
    preprocess = detector.preprocess
    pillow = config.data.resize == "pillow"
    return (preprocess.image_size, preprocess.interpolation) if pillow else None


@torch.no_grad()
def score_set(
    detector: Detector,
    features_of: Callable[[Tensor], Tensor],
    index: Index,
    loader: Loader,
    batch: int,
    context: Context,
) -> Scores:
    """Scores every sample of a set once over all ranks; a collective, equal on all ranks.

    Args:
        features_of: Normalised images ``[b, 3, H, H]`` to features (through the engine, where
            parameters are partitioned).
        batch: Samples of one rank's batch.
    """
    world = context.world_size
    size = min(batch * world, -(-len(index) // world) * world)
    plan = sequential_plan(len(index), size)
    rows: list[Tensor] = []
    for part in loader.batches(plan, epoch=0, rank=context.rank, world=world):
        images = detector.to_input(part.images.to(context.device), part.sizes)
        scored = probabilities(detector.head(features_of(images)))
        rows.append(torch.cat([scored, part.valid.to(context.device).float()[:, None]], dim=1))
    local = torch.stack(rows)  # [batches, b, 3]
    whole = all_gather_rows(local[None])  # [world, batches, b, 3]
    flat = whole.transpose(0, 1).reshape(-1, 3).cpu().numpy()  # in the order of the plan
    keep = flat[:, 2] > 0
    ids = plan.ids.reshape(-1)[keep]
    if missing := len(index) - len(ids):
        logger.warning("%d of %d samples could not be read and are not scored", missing, len(index))
    return Scores(index, ids, flat[keep, 0], flat[keep, 1])


def probabilities(logits: Tensor) -> Tensor:
    """Fake probability, and fake minus real logit, ``[b, 2]`` float32, of logits ``[b, 2]``."""
    logits = logits.float()
    return torch.stack([torch.softmax(logits, dim=1)[:, 1], logits[:, 1] - logits[:, 0]], dim=1)
