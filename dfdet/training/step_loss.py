"""The loss of a step: that of the *global* batch, whatever the number of ranks and micro-batches.

Features are gathered, a rank's live rows are spliced in, every rank computes the whole loss (see
``dfdet.training.gather``). With accumulation and pairwise terms a first pass without gradients gathers all
features, and a second recomputes each micro-batch with its gradient (gradient caching, arXiv
2101.06983). A step sends one message for the loss, or with ``loss.pairwise_scope=step`` one a
micro-step and one before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.model.temporal import TemporalHead
from dfdet.training.clip_loss import with_clips
from dfdet.training.clock import StepClock
from dfdet.training.gather import Rows, all_gather_batch, splice
from dfdet.training.losses import DetectionLoss, Terms
from dfdet.training.schedule import Layout

Key = tuple[int, int, int]
"""Seed, epoch, batch: what slerp draws from."""


@dataclass(frozen=True)
class Micro:
    """A slice of a rank's batch, on the device."""

    images: Tensor
    """uint8 ``[m, S, S, 3]``."""
    sizes: Tensor
    """Sides of the crops in them, on the CPU: reading them must not wait for the device."""
    labels: Tensor
    valid: Tensor
    times: Tensor | None = None
    """When each lies in its video, where the batch is of clips."""


@dataclass(frozen=True)
class Passes:
    """What the loss asks of the model."""

    features: Callable[[Micro], Tensor]
    """Features ``[m, D]`` with a graph."""
    cached: Callable[[Micro], Tensor]
    """The same without a graph, called under ``no_grad``."""
    backward: Callable[[Tensor], None]
    """Gradients of a loss, averaged over ranks and micro-steps."""
    head: nn.Module
    temporal: TemporalHead | None = None


def micro_batches(batch: Batch, layout: Layout, device: torch.device) -> Iterator[Micro]:
    """The ``accumulation`` equal slices of a rank's batch, in order."""
    for start in range(0, layout.per_rank, layout.micro):
        rows = slice(start, start + layout.micro)
        images, labels, valid = (
            tensor[rows].to(device, non_blocking=True) for tensor in (batch.images, batch.labels, batch.valid)
        )
        times = None if batch.times is None else batch.times[rows].to(device, non_blocking=True)
        yield Micro(images, batch.sizes[rows], labels, valid, times)


def terms_of(
    loss: DetectionLoss, rows: Rows, head: nn.Module, temporal: TemporalHead | None, key: Key
) -> Terms:
    """The terms of a batch, those of its clips among them where there is a temporal head."""
    terms = loss(rows.features, rows.labels, rows.valid, head, key)
    return terms if temporal is None else with_clips(terms, loss.config, rows, head, temporal)


def _rows(features: Tensor, micros: list[Micro]) -> Rows:
    """What the loss sees of micro-batches with features ``[sum of m, D]``."""
    labels, valid = (torch.cat([getattr(m, name) for m in micros]) for name in ("labels", "valid"))
    times = [micro.times for micro in micros if micro.times is not None]
    return Rows(features, labels, valid, torch.cat(times) if times else None)


class StepLoss:
    """Forward and backward passes of a step, from one rank's view of the global batch."""

    def __init__(self, config: Config, layout: Layout, rank: int, clock: StepClock) -> None:
        self.loss = DetectionLoss(config.loss)
        self.layout = layout
        self.rank = rank
        self.clock = clock
        self.scope = config.loss.pairwise_scope if config.loss.pairwise else "step"
        if layout.accumulation == 1 and self.scope == "step":
            self.scope = "global"

    def run(self, micros: list[Micro], passes: Passes, key: Key) -> Terms:
        """All passes of a step.

        Returns:
            The terms of the global batch, detached: equal on all ranks unless the scope is ``rank``.
        """
        if self.scope == "global":
            return self._whole(micros, passes, key)
        return self._by_micro_step(micros, passes, key)

    def _whole(self, micros: list[Micro], passes: Passes, key: Key) -> Terms:
        """One loss over the global batch; with several micro-batches, each is passed through twice."""
        two_pass, layout = len(micros) > 1, self.layout
        self.clock.start("forward")
        live = None if two_pass else passes.features(micros[0])
        own = self._cached(micros, passes) if live is None else live
        everyone = self._gather(_rows(own, micros))
        for number, micro in enumerate(micros):
            live = passes.features(micro) if two_pass else own
            start = self.rank * layout.per_rank + number * layout.micro
            z = splice(everyone.features, live, start, float(layout.world * layout.accumulation))
            terms = terms_of(self.loss, everyone._replace(features=z), passes.head, passes.temporal, key)
            self._backward(terms.total, passes)
        return replace(terms, total=terms.total.detach())

    @staticmethod
    @torch.no_grad()
    def _cached(micros: list[Micro], passes: Passes) -> Tensor:
        return torch.cat([passes.cached(micro) for micro in micros])

    def _by_micro_step(self, micros: list[Micro], passes: Passes, key: Key) -> Terms:
        """A loss for each micro-step, over all ranks or this one, weighted by its valid samples."""
        counts = self._valid_counts(micros)
        shares = counts / counts.sum().clamp(min=1)
        sums: dict[str, Tensor] = {}
        for number, micro in enumerate(micros):
            self.clock.start("forward")
            terms = self._micro_loss(number, micro, passes, key)
            self._backward(terms.total * (shares[number] * len(micros)), passes)
            for name, value in vars(terms).items():
                sums[name] = sums.get(name, 0.0) + value.detach() * shares[number]
        return type(terms)(**sums)

    def _valid_counts(self, micros: list[Micro]) -> Tensor:
        """``[accumulation]`` float32."""
        counts = torch.stack([micro.valid.sum() for micro in micros]).float()
        if self.scope == "step" and self.layout.world > 1:
            self.clock.start("communication")
            dist.all_reduce(counts)
        return counts

    def _micro_loss(self, number: int, micro: Micro, passes: Passes, key: Key) -> Terms:
        seed, epoch, batch = key
        draw = batch * self.layout.accumulation + number
        live = passes.features(micro)
        if self.scope == "rank":
            key = (seed, epoch, draw * self.layout.world + self.rank)
            return terms_of(self.loss, _rows(live, [micro]), passes.head, passes.temporal, key)
        everyone = self._gather(_rows(live, [micro]))
        z = splice(everyone.features, live, self.rank * self.layout.micro, float(self.layout.world))
        rows = everyone._replace(features=z)
        return terms_of(self.loss, rows, passes.head, passes.temporal, (seed, epoch, draw))

    def _gather(self, rows: Rows) -> Rows:
        if self.layout.world == 1:
            return all_gather_batch(rows)
        self.clock.start("communication")
        everyone = all_gather_batch(rows)
        self.clock.start("forward")
        return everyone

    def _backward(self, loss: Tensor, passes: Passes) -> None:
        self.clock.start("backward")
        passes.backward(loss)
        self.clock.start("forward")
