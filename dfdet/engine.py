"""The training step: forward, global loss, backward and update through DeepSpeed.

The loss of a step is that of the *global* batch, whatever the number of ranks and micro-batches:
features are gathered, a rank's live rows are spliced in, every rank computes the whole loss (see
``dfdet.gather``). With accumulation and pairwise terms a first pass without gradients gathers all
features, and a second recomputes each micro-batch with its gradient (gradient caching, arXiv
2101.06983).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.detector import Detector
from dfdet.gather import all_gather_rows, splice
from dfdet.losses import DetectionLoss, Terms
from dfdet.optimizer import GuardedAdamW
from dfdet.schedule import Layout, deepspeed_config

Tensors = dict[str, Tensor]
SLOTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Micro:
    """A slice of a rank's batch, on the device."""

    images: Tensor
    """uint8 ``[m, S, S, 3]``."""
    sizes: Tensor
    """Sides of the crops in them, on the CPU: reading them must not wait for the device."""
    labels: Tensor
    valid: Tensor


def micro_batches(batch: Batch, layout: Layout, device: torch.device) -> Iterator[Micro]:
    """The ``accumulation`` equal slices of a rank's batch, in order."""
    for start in range(0, layout.per_rank, layout.micro):
        rows = slice(start, start + layout.micro)
        images, labels, valid = (
            tensor[rows].to(device, non_blocking=True) for tensor in (batch.images, batch.labels, batch.valid)
        )
        yield Micro(images, batch.sizes[rows], labels, valid)


class StepLoss:
    """The global loss of a step, from one rank's view of it."""

    def __init__(self, config: Config, layout: Layout, rank: int) -> None:
        self.loss = DetectionLoss(config.loss)
        self.layout = layout
        self.rank = rank
        self.scope = config.loss.pairwise_scope if config.loss.pairwise else "step"
        if layout.accumulation == 1 and self.scope == "step":
            self.scope = "global"
        self.two_pass = self.scope == "global" and layout.accumulation > 1

    def run(
        self,
        micros: list[Micro],
        features_of: Callable[[Micro], Tensor],
        backward: Callable[[Tensor], None],
        head: torch.nn.Module,
        key: tuple[int, int, int],
        no_grad_features_of: Callable[[Micro], Tensor] | None = None,
    ) -> Terms:
        """Forward and backward of all micro-batches; ``backward`` averages over ranks and micro-steps.

        Args:
            key: (seed, epoch, batch), from which slerp draws.

        Returns:
            The terms of the global batch, detached: equal on all ranks unless the scope is ``rank``.
        """
        labels, valid = (torch.cat([getattr(m, name) for m in micros]) for name in ("labels", "valid"))
        everyone = torch.stack([labels, valid.long()], dim=1)
        everyone = all_gather_rows(everyone) if self.scope != "rank" else everyone
        if self.two_pass:
            with torch.no_grad():
                own = torch.cat([(no_grad_features_of or features_of)(m) for m in micros])
            return self._second_pass(all_gather_rows(own), everyone, micros, features_of, backward, head, key)
        total = everyone[:, 1].sum().clamp(min=1)
        sums: dict[str, Tensor] = {}
        for number, micro in enumerate(micros):
            terms, share = self._micro_loss(number, micro, everyone, features_of(micro), head, key)
            weight = share * self.layout.accumulation / total if len(micros) > 1 else 1.0
            backward(terms.total * weight)
            for name, value in vars(terms).items():
                sums[name] = sums.get(name, 0.0) + value.detach() * weight / len(micros)
        return Terms(**sums)

    def _second_pass(
        self,
        gathered: Tensor,
        everyone: Tensor,
        micros: list[Micro],
        features_of: Callable[[Micro], Tensor],
        backward: Callable[[Tensor], None],
        head: torch.nn.Module,
        key: tuple[int, int, int],
    ) -> Terms:
        scale = float(self.layout.world * self.layout.accumulation)
        for number, micro in enumerate(micros):
            start = self.rank * self.layout.per_rank + number * self.layout.micro
            z = splice(gathered, features_of(micro), start, scale)
            terms = self.loss(z, everyone[:, 0], everyone[:, 1].bool(), head, key)
            backward(terms.total)
        return Terms(**{name: value.detach() for name, value in vars(terms).items()})

    def _micro_loss(
        self,
        number: int,
        micro: Micro,
        everyone: Tensor,
        live: Tensor,
        head: torch.nn.Module,
        key: tuple[int, int, int],
    ) -> tuple[Terms, Tensor]:
        """Loss of one micro-step over all ranks (or one rank) and its number of valid samples."""
        layout, (seed, epoch, batch) = self.layout, key
        draw = batch * layout.accumulation + number
        if self.scope == "rank":
            key = (seed, epoch, draw * layout.world + self.rank)
            return self.loss(live, micro.labels, micro.valid, head, key), micro.valid.sum()
        rows = everyone.view(layout.world, layout.accumulation, layout.micro, 2)[:, number].reshape(-1, 2)
        gathered = all_gather_rows(live)
        z = splice(gathered, live, self.rank * layout.micro, float(layout.world))
        terms = self.loss(z, rows[:, 0], rows[:, 1].bool(), head, (seed, epoch, draw))
        return terms, rows[:, 1].sum()


class TrainEngine:
    """A detector under DeepSpeed: one optimizer step at a time, and its state whole."""

    def __init__(
        self,
        detector: Detector,
        config: Config,
        layout: Layout,
        rank: int,
        device: torch.device,
        moments: dict[str, Tensors] | None = None,
    ) -> None:
        """Wraps a detector that holds the weights to start from; ``moments`` resumes the optimizer."""
        deepspeed = import_deepspeed(device)
        self.names = {parameter: name for name, parameter in detector.trainable().items()}
        self.stage = config.engine.zero_stage
        self.device = device
        self.layout = layout
        self.step_loss = StepLoss(config, layout, rank)
        self.bad_steps = torch.zeros((), device=device)
        self.optimizer = GuardedAdamW(
            param_groups(detector, config.optim.head_lr_factor),
            partitioned=self.stage > 0,
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.engine, self._wrapped, _, _ = deepspeed.initialize(
            model=detector,
            optimizer=self.optimizer,
            config=deepspeed_config(config, layout),
            dist_init_required=False,
        )
        self.optimizer.prepare_state(self._stepped())
        if link := getattr(self._wrapped, "_lazy_init_hp_params_optimizer_state", None):
            link()
        if moments:
            self._load_moments(moments)

    def _stepped(self) -> list[Tensor]:
        """The tensors that the optimizer steps: ZeRO 3 hands it its flat partitions only then."""
        if self.stage == 3:
            return list(self._wrapped.fp32_partitioned_groups_flat)
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, batch: Batch, key: tuple[int, int, int], lr: float) -> Terms:
        """One optimizer step on this rank's slice of a global batch.

        Args:
            key: (seed, epoch, batch).
            lr: Learning rate of the tower.

        Returns:
            Loss terms, detached and on the device. A non-finite loss or gradient changes nothing
            and is counted in :attr:`bad_steps`, on the device too.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self.engine.train()
        self.detector.tower.eval()  # no dropout, no statistics: what is frozen stays as it is
        terms = self.step_loss.run(
            list(micro_batches(batch, self.layout, self.device)),
            self._features,
            self._backward,
            self.detector.head,
            key,
            no_grad_features_of=lambda m: self.detector(self.detector.to_input(m.images, m.sizes)),
        )
        self.optimizer.loss_bad = terms.total.isfinite().logical_not()
        self.optimizer.bad = None
        self.engine.step()
        self.bad_steps += 1.0 if self.optimizer.bad is None else self.optimizer.bad
        return terms

    @property
    def detector(self) -> Detector:
        """The wrapped detector."""
        return self.engine.module

    def _features(self, micro: Micro) -> Tensor:
        return self.engine(self.detector.to_input(micro.images, micro.sizes))

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        # each micro-step but the last only moves DeepSpeed's accumulation on
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def weights(self) -> Tensors:
        """What trains, whole and in float32, on the CPU; a collective under ZeRO."""
        return {name: self._whole(parameter, None) for parameter, name in self.names.items()}

    def moments(self) -> dict[str, Tensors]:
        """The optimizer's moments and step count by parameter, whole; a collective under ZeRO."""
        count = torch.tensor(float(self.optimizer.step_count()))
        return {
            name: {"step": count, **{slot: self._whole(parameter, slot) for slot in SLOTS}}
            for parameter, name in self.names.items()
        }

    def _whole(self, parameter: torch.nn.Parameter, slot: str | None) -> Tensor:
        if self.stage == 0:
            tensor = parameter if slot is None else self.optimizer.state[parameter][slot]
        else:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            tensor = (
                safe_get_full_fp32_param(parameter)
                if slot is None
                else safe_get_full_optimizer_state(parameter, slot)
            )
        return tensor.detach().float().cpu().clone()

    def _load_moments(self, moments: dict[str, Tensors]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        count = 0
        for parameter, name in self.names.items():
            count = int(moments[name]["step"].item())
            for slot in SLOTS:
                value = moments[name][slot].to(self.device)
                if self.stage == 0:
                    self.optimizer.state[parameter][slot].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, slot)
        self.optimizer.set_step_count(count)


def param_groups(detector: Detector, head_factor: float = 1.0) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group: tower, head."""
    head = list(detector.head.parameters())
    tower = [p for p in detector.tower.parameters() if p.requires_grad]
    groups = [{"params": tower, "lr_factor": 1.0}, {"params": head, "lr_factor": head_factor}]
    return [group for group in groups if group["params"]]


def dry_batch(detector: Detector, config: Config, layout: Layout, pixels: int, device: torch.device) -> None:
    """A forward and backward of one full micro-batch, so that memory runs out now and not later."""
    micro = Micro(
        torch.zeros(layout.micro, pixels, pixels, 3, dtype=torch.uint8, device=device),
        torch.full((layout.micro,), pixels),
        torch.arange(layout.micro, device=device) % 2,
        torch.ones(layout.micro, dtype=torch.bool, device=device),
    )
    features = detector(detector.to_input(micro.images, micro.sizes))
    DetectionLoss(config.loss)(features, micro.labels, micro.valid, detector.head, (0, 0, 0)).total.backward()
    detector.zero_grad(set_to_none=True)


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for a device, without its noise and without its build of a shared-memory kernel.

    The kernel (CPU all-reduce within a host) takes minutes to compile and nothing here needs it.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed
