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
from dfdet.data.plan import clip_batch, evaluation_plan
from dfdet.evaluation import metrics
from dfdet.hang.progress import PROGRESS
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
    clip_scores: NDArray[np.float32] | None = None
    """Fake probability of each sample's clip ``[n]``; None without a temporal head."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """0 real, 1 fake ``[n]``."""
        return self.index.label[self.ids]

    def metrics(self, split: str, name: str, threshold: float | None = None) -> dict[str, float | None]:
        """Frame- and video-level metrics of the set, by their full names.

        Where clips have scores, video-level metrics of those are there too, as ``..._temporal``; without
        what needs a threshold, which is that of frames.
        """
        found = self._metrics(self.scores, split, name, threshold)
        if self.clip_scores is None:
            return found
        prefix = f"{split}/{name}/video/"
        of_clips = self._metrics(self.clip_scores, split, name, None)
        return found | {temporal(k): v for k, v in of_clips.items() if k.startswith(prefix)}

    def _metrics(
        self, scores: NDArray[np.float32], split: str, name: str, threshold: float | None
    ) -> dict[str, float | None]:
        return metrics.compute(
            split,
            name,
            self.labels,
            scores,
            self.index.video[self.ids],
            self.index.method[self.ids],
            self.index.methods,
            threshold,
        )


def temporal(name: str) -> str:
    """The name of a video-level metric where the score of a video is the mean of its clips' scores.

    ``val/v/video/auroc`` gives ``val/v/video/auroc_temporal``, and ``.../auroc/DF`` (of a method)
    ``.../auroc_temporal/DF``.
    """
    split, set_name, level, metric, *method = name.split("/")
    return "/".join([split, set_name, level, f"{metric}_temporal", *method])


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
    frames = detector.temporal.frames if detector.temporal is not None else 0
    size = min(batch, -(-len(index) // world))
    if frames:
        size = clip_batch(size, frames)
    plan = evaluation_plan(index, size * world, frames)
    rows: list[Tensor] = []
    batches = loader.batches(plan, epoch=0, rank=context.rank, world=world)
    for part in PROGRESS.through(batches, "data wait of evaluation", "evaluation"):
        images = detector.to_input(part.images.to(context.device, non_blocking=True), part.sizes)
        valid = part.valid.to(context.device, non_blocking=True)
        scored = frame_and_clip(detector, features_of(images), part.times, valid)
        rows.append(torch.cat([valid.float()[:, None], scored], dim=1))
    PROGRESS.mark("gathering scores")
    local = torch.stack(rows)  # [batches, b, columns]
    whole = all_gather_rows(local[None])  # [world, batches, b, columns]
    flat = whole.transpose(0, 1).flatten(0, 2).cpu().numpy()  # in the order of the plan
    keep = flat[:, 0] > 0
    ids = plan.ids.reshape(-1)[keep]
    if missing := len(index) - len(ids):
        logger.warning("%d of %d samples could not be read and are not scored", missing, len(index))
    order = np.argsort(ids)
    found = flat[keep][order]
    return Scores(index, ids[order], found[:, 1], found[:, 2], found[:, 3] if frames else None)


def frame_and_clip(detector: Detector, features: Tensor, times: Tensor | None, valid: Tensor) -> Tensor:
    """:func:`probabilities` of frames, ``[b, 2]``; with a temporal head those of their clips too, ``[b, 4]``.

    Args:
        features: ``[b, D]``; with a temporal head of whole clips.
        times: ``[b]``, when each lies in its video.
        valid: ``[b]`` bool; what stands in other rows means nothing.
    """
    frames = probabilities(detector.head(features))
    if detector.temporal is None:
        return frames
    assert times is not None
    clips = detector.temporal.of_frames(features, times.to(features.device), valid)
    return torch.cat([frames, probabilities(detector.head(clips))], dim=1)


def probabilities(logits: Tensor) -> Tensor:
    """Fake probability, and fake minus real logit, ``[b, 2]`` float32, of logits ``[b, 2]``."""
    logits = logits.float()
    return torch.stack([torch.softmax(logits, dim=1)[:, 1], logits[:, 1] - logits[:, 0]], dim=1)
