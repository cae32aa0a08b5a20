"""One process's part in an evaluation: slices of sets, scored by all checkpoints under all corruptions.

An image is read, decoded and cut once for all of them. Batches are those of the set's order, whoever
scores them: scores do not depend on the number of workers, nor on what was done before a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.data.index import Index, make_cache, open_sets
from dfdet.data.loader import Batch, Loader
from dfdet.data.plan import WholePlan, sequential_plan
from dfdet.data.prepare import pillow_resize
from dfdet.evaluation.corruptions.corrupt import check_changes, corrupt
from dfdet.evaluation.corruptions.grid import Corruption
from dfdet.evaluation.evaluate import probabilities
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
class Slice:
    """Some batches of a set, for the checkpoints that cut its crops alike."""

    set_key: str
    """As in ``Work.sets``."""
    crop_scale: float
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
    """Scores of a slice; ``n`` rows are its samples in order, those that only pad left out."""

    scores: NDArray[np.float32]
    """Fake probability, and fake minus real logit ``[n, 1 + corruptions, checkpoints, 2]``."""
    valid: NDArray[np.bool_]
    """False where a sample could not be read ``[n]``."""


def slices(
    sets: dict[str, int],
    scales: Sequence[float],
    batch: int,
    batches: int,
    corrupted: Sequence[str],
) -> list[Slice]:
    """All slices of an evaluation.

    Args:
        sets: Samples of each set.
        scales: Crop scale of each checkpoint.
        batch: Samples of a batch.
        batches: Batches of a slice at most.
        corrupted: Sets that are scored under the corruptions too.
    """
    groups = {
        scale: tuple(np.flatnonzero(np.equal(scales, scale)).tolist()) for scale in dict.fromkeys(scales)
    }
    return [
        Slice(name, scale, places, low, min(low + batches, -(-n // batch)), name in corrupted)
        for name, n in sets.items()
        for scale, places in groups.items()
        for low in range(0, -(-n // batch), batches)
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
        self._pool = ThreadPoolExecutor(threads)

    def score(self, part: Slice) -> Part:
        """Scores a slice.

        Raises:
            DamagedSampleError: A sample is damaged and ``on_damage`` is ``raise``.
            DfdetError: A corruption that changes nothing, or scores that are not finite.
        """
        index, loader = self._open(part.set_key, part.crop_scale)
        whole = sequential_plan(len(index), self.work.options.batch)
        plan = WholePlan(whole.ids[part.low : part.high], whole.valid[part.low : part.high])
        models = [self.models[place] for place in part.checkpoints]
        corruptions = self.work.corruptions if part.corrupted else ()
        rows = []
        for number, batch in enumerate(loader.batches(plan, epoch=0, rank=0, world=1)):
            first = part.low == 0 and number == 0
            rows.append((self._batch(models, corruptions, batch, check=first), batch.valid.numpy()))
        real = plan.valid.reshape(-1)  # not padding
        scores, valid = (np.concatenate(columns) for columns in zip(*rows, strict=True))
        return Part(scores[real], valid[real])

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
    ) -> NDArray[np.float32]:
        """Scores ``[b, 1 + corruptions, checkpoints, 2]``; perhaps checks that corruptions do something."""
        before = batch.images.to(self.device), batch.sizes
        plain = self._scores(models, *before)
        rows = [plain]
        seed, threads = self.work.options.seed, self.threads
        for corruption in corruptions:
            if corruption.clean:
                rows.append(plain)
                continue
            after = corrupt(*before, corruption, batch.ids, seed, threads)
            if check:
                check_changes(before, after, corruption)
            rows.append(self._scores(models, *after))
        return torch.stack(rows, dim=1).cpu().numpy()

    def _scores(self, models: Sequence[Opened], images: Tensor, sizes: Tensor) -> Tensor:
        """``[b, checkpoints, 2]``."""
        return torch.stack([self._score(model, images, sizes) for model in models], dim=1)

    def _score(self, model: Opened, images: Tensor, sizes: Tensor) -> Tensor:
        detector = model.detector
        if model.config.data.resize == "pillow":
            images, sizes = self._by_pillow(images, sizes, detector.preprocess)
        return probabilities(detector.head(detector(detector.to_input(images, sizes))))

    def _by_pillow(self, images: Tensor, sizes: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """All crops at the model's input size, by Pillow."""
        side = preprocess.image_size
        crops = [
            image[:size, :size] for image, size in zip(images.cpu().numpy(), sizes.tolist(), strict=True)
        ]
        resized = self._pool.map(lambda crop: pillow_resize(crop, side, preprocess.interpolation), crops)
        return torch.from_numpy(np.stack(list(resized))).to(images.device), torch.full_like(sizes, side)
