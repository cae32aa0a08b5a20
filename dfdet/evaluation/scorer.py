"""One process's part in an evaluation: slices of sets, scored by all checkpoints under all corruptions.

An image is read, decoded and cut once for all of them. Batches are those of the set's order, whoever
scores them: scores do not depend on the number of workers, nor on what was done before a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.data.index import Index, make_cache, open_sets
from dfdet.data.loader import Batch, Loader
from dfdet.data.plan import WholePlan, evaluation_plan
from dfdet.data.prepare import pillow_resize
from dfdet.evaluation.corruptions.corrupt import check_changes, corrupt
from dfdet.evaluation.corruptions.grid import Corruption
from dfdet.evaluation.evaluate import frame_and_clip
from dfdet.evaluation.options import Options
from dfdet.model.preprocess import Preprocess


@dataclass(frozen=True)
class Work:
    """What all processes of an evaluation share."""

    options: Options
    sets: dict[str, str]
    """Manifests by the key of the set, all paths absolute."""
    corruptions: tuple[Corruption, ...]


@dataclass(frozen=True)
class Look:
    """How a checkpoint looks at a set."""

    crop_scale: float
    """Margin of the crops."""
    clip_frames: int = 0
    """Frames of the clips that it scores too; 0 for none."""


@dataclass(frozen=True)
class Slice:
    """Some batches of a set, for the checkpoints that look at it alike."""

    set_key: str
    """As in ``Work.sets``."""
    look: Look
    checkpoints: tuple[int, ...]
    """Places in ``Options.checkpoint``."""
    low: int
    """First batch."""
    high: int
    """Batch after the last."""
    corrupted: bool
    """Whether it is scored under the corruptions too."""


@dataclass(frozen=True, eq=False)
class Part:
    """Scores of a slice; ``n`` rows are its samples in the order of the plan, without those that only pad."""

    scores: NDArray[np.float32]
    """Fake probability, and fake minus real logit ``[n, 1 + corruptions, checkpoints, 2]``; of temporal
    checkpoints those of a sample's clip follow ``[..., 4]``."""
    valid: NDArray[np.bool_]
    """False where a sample could not be read ``[n]``."""


def slices(
    sets: Mapping[str, Mapping[int, int]], looks: Sequence[Look], batches: int, corrupted: Sequence[str]
) -> list[Slice]:
    """All slices of an evaluation.

    Args:
        sets: Batches of each set, by the frames of a clip.
        looks: How each checkpoint looks at them.
        batches: Batches of a slice at most.
        corrupted: Sets that are scored under the corruptions too.
    """
    groups: dict[Look, list[int]] = {}
    for place, look in enumerate(looks):
        groups.setdefault(look, []).append(place)
    return [
        Slice(name, look, tuple(places), low, min(low + batches, counts[look.clip_frames]), name in corrupted)
        for name, counts in sets.items()
        for look, places in groups.items()
        for low in range(0, counts[look.clip_frames], batches)
    ]


class Scorer:
    """Scores slices; keeps models and readers open between them.

    Args:
        work: What is scored.
        device: Where.
        threads: Decode threads.

    Raises:
        DfdetError: A checkpoint or set cannot be opened.
    """

    def __init__(self, work: Work, device: str, threads: int) -> None:
        self.work, self.device, self.threads = work, torch.device(device), threads
        options = work.options
        self.models = [
            open_checkpoint(source, device=device, pretrained=options.pretrained)
            for source in options.checkpoint
        ]
        self._indexes: dict[str, Index] = {}
        self._loaders: dict[tuple[str, float], Loader] = {}
        self._plans: dict[tuple[str, int], WholePlan] = {}
        self._pool = ThreadPoolExecutor(threads)

    def score(self, part: Slice) -> Part:
        """Scores a slice.

        Raises:
            DamagedSampleError: A sample is damaged and ``on_damage`` is ``raise``.
            DfdetError: A corruption that changes nothing, or scores that are not finite.
        """
        index, loader = self._open(part.set_key, part.look.crop_scale)
        whole = self._plan(part.set_key, index, part.look.clip_frames)
        rows_of = slice(part.low, part.high)
        plan = WholePlan(whole.ids[rows_of], whole.valid[rows_of], whole.clip_frames)
        models = [self.models[place] for place in part.checkpoints]
        corruptions = self.work.corruptions if part.corrupted else ()
        rows = []
        for number, batch in enumerate(loader.batches(plan, epoch=0, rank=0, world=1)):
            first = part.low == 0 and number == 0
            rows.append((self._batch(models, corruptions, batch, check=first), batch.valid.numpy()))
        real = plan.valid.reshape(-1)  # not padding
        scores, valid = zip(*rows, strict=True)
        return Part(torch.cat(scores).cpu().numpy()[real], np.concatenate(valid)[real])

    def _plan(self, name: str, index: Index, clip_frames: int) -> WholePlan:
        if (name, clip_frames) not in self._plans:
            plan = evaluation_plan(index, self.work.options.batch, clip_frames)
            self._plans[name, clip_frames] = plan
        return self._plans[name, clip_frames]

    def _open(self, name: str, scale: float) -> tuple[Index, Loader]:
        options = self.work.options
        data = options.data()
        if name not in self._indexes:
            self._indexes[name] = open_sets([self.work.sets[name]], mix_crops=True, cache=make_cache(data))
        if (name, scale) not in self._loaders:
            self._loaders[name, scale] = Loader(
                self._indexes[name],
                crop_scale=scale,
                augment=None,
                seed=0,
                threads=self.threads,
                prefetch=data.prefetch,
                on_damage=options.on_damage,
                max_damaged=options.max_damaged,
                pin=self.device.type == "cuda",
            )
        return self._indexes[name], self._loaders[name, scale]

    @torch.no_grad()
    def _batch(
        self, models: Sequence[Opened], corruptions: Sequence[Corruption], batch: Batch, *, check: bool
    ) -> Tensor:
        """Scores ``[b, 1 + corruptions, checkpoints, 2 or 4]``; perhaps checks what corruptions do.

        On an accelerator nothing waits for it but the check: the next batch is decoded, and the next JPEG
        compressed, while it computes.
        """
        before = batch.images.to(self.device, non_blocking=True), batch.sizes
        plain = self._scores(models, *before, batch)
        rows = [plain]
        seed, threads = self.work.options.seed, self.threads
        for corruption in corruptions:
            if corruption.clean:
                rows.append(plain)
                continue
            source = batch.images if corruption.kind == "jpeg" else before[0]  # JPEG is for the CPU
            changed, sizes = corrupt(source, batch.sizes, corruption, batch.ids, seed, threads)
            after = changed.to(self.device, non_blocking=True), sizes
            if check:
                check_changes(before, after, corruption)
            rows.append(self._scores(models, *after, batch))
        return torch.stack(rows, dim=1)

    def _scores(self, models: Sequence[Opened], images: Tensor, sizes: Tensor, batch: Batch) -> Tensor:
        """``[b, checkpoints, 2 or 4]``."""
        return torch.stack([self._score(model, images, sizes, batch) for model in models], dim=1)

    def _score(self, model: Opened, images: Tensor, sizes: Tensor, batch: Batch) -> Tensor:
        detector = model.detector
        if model.config.data.resize == "pillow":
            images, sizes = self._by_pillow(images, sizes, detector.preprocess)
        features = detector(detector.to_input(images, sizes))
        return frame_and_clip(detector, features, batch.times, batch.valid.to(self.device, non_blocking=True))

    def _by_pillow(self, images: Tensor, sizes: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """All crops at the model's input size, by Pillow."""
        side = preprocess.image_size
        crops = [
            image[:size, :size] for image, size in zip(images.cpu().numpy(), sizes.tolist(), strict=True)
        ]
        resized = self._pool.map(lambda crop: pillow_resize(crop, side, preprocess.interpolation), crops)
        return torch.from_numpy(np.stack(list(resized))).to(images.device), torch.full_like(sizes, side)
