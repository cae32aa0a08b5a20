"""The training step through DeepSpeed: forward, global loss, backward, update.

Between log steps nothing asks the device. At ZeRO stage 0 and W ranks a step is two messages: the
features of the batch (``dfdet.training.step_loss``) and the gradients of what trains.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.model import compiled
from dfdet.model.detector import Detector
from dfdet.training import determinism
from dfdet.training.clock import StepClock
from dfdet.training.gather import Rows
from dfdet.training.losses import DetectionLoss, Terms
from dfdet.training.optimizer import GuardedAdamW
from dfdet.training.schedule import Layout, deepspeed_config
from dfdet.training.step_loss import Key, Micro, Passes, StepLoss, micro_batches, terms_of

Tensors = dict[str, Tensor]
SLOTS = ("exp_avg", "exp_avg_sq")


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
        self.names = {parameter: name for name, parameter in detector.trainable().items()}
        self.stage = config.engine.zero_stage
        deepspeed = import_deepspeed(device)
        self.device = device
        self.layout = layout
        self.clock = StepClock(device)
        """Time of the parts of a step; read it at log steps."""
        self.step_loss = StepLoss(config, layout, rank, self.clock)
        self.bad_steps = torch.zeros((), device=device)
        self.optimizer = GuardedAdamW(
            param_groups(detector, config.optim.head_lr_factor),
            partitioned=self.stage > 0,
            clip_norm=config.optim.clip_norm if self.stage == 0 else 0.0,
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.engine, self._wrapped, _, _ = deepspeed.initialize(
            model=detector,
            optimizer=self.optimizer,
            config=deepspeed_config(config, layout, sum(p.numel() for p in self.names)),
            dist_init_required=False,
        )
        # at stage 0 the step calls for the reduction itself, where there is something to reduce
        self.engine.enable_backward_allreduce = self.stage > 0
        self.passes = Passes(self._features, self._cached, self._backward, detector.head, detector.temporal)
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

    def step(self, batch: Batch, key: Key, lr: float) -> Terms:
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
        if not self.engine.training:
            self.engine.train()  # the tower stays in eval mode: no dropout, no statistics
        self.clock.start("forward")
        with determinism.explained():
            terms = self.step_loss.run(list(micro_batches(batch, self.layout, self.device)), self.passes, key)
        self.clock.start("optimizer")
        self.optimizer.loss_bad = terms.total.isfinite().logical_not()
        self.optimizer.bad = None
        self.engine.step()
        self.bad_steps += 1.0 if self.optimizer.bad is None else self.optimizer.bad
        self.clock.stop()
        return terms

    @property
    def detector(self) -> Detector:
        """The wrapped detector."""
        return self.engine.module

    def _features(self, micro: Micro) -> Tensor:
        return self.engine(self.detector.to_input(micro.images, micro.sizes))

    def _cached(self, micro: Micro) -> Tensor:
        return self.detector(self.detector.to_input(micro.images, micro.sizes))

    def _backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only moves DeepSpeed's accumulation on
        elif self.stage == 0 and self.layout.world > 1:
            self.clock.start("communication")
            self.engine.allreduce_gradients()

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
    """Every trainable parameter in exactly one group: tower, heads."""
    head = list(detector.head.parameters())
    if detector.temporal is not None:
        head += detector.temporal.parameters()
    tower = [p for p in detector.tower.parameters() if p.requires_grad]
    groups = [{"params": tower, "lr_factor": 1.0}, {"params": head, "lr_factor": head_factor}]
    return [group for group in groups if group["params"]]


def dry_batch(detector: Detector, config: Config, layout: Layout, pixels: int, device: torch.device) -> None:
    """A forward and backward of one full micro-batch, so that what fails fails now and not later.

    Where compilation fails the blocks are eager again, and the log says so.

    Raises:
        ConfigError: An operation without a deterministic form, where that was asked for.
    """
    micro = Micro(
        torch.zeros(layout.micro, pixels, pixels, 3, dtype=torch.uint8, device=device),
        torch.full((layout.micro,), pixels),
        torch.arange(layout.micro, device=device) % 2,
        torch.ones(layout.micro, dtype=torch.bool, device=device),
        torch.zeros(layout.micro, device=device),
    )
    with determinism.explained():
        with compiled.or_eager(detector.tower) as failed:
            _forward_backward(detector, DetectionLoss(config.loss), micro)
        if failed:
            _forward_backward(detector, DetectionLoss(config.loss), micro)
    detector.zero_grad(set_to_none=True)


def _forward_backward(detector: Detector, loss: DetectionLoss, micro: Micro) -> None:
    features = detector(detector.to_input(micro.images, micro.sizes))
    rows = Rows(features, micro.labels, micro.valid, micro.times)
    terms_of(loss, rows, detector.head, detector.temporal, (0, 0, 0)).total.backward()


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for a device, without its noise, builds and probes.

    Its shared-memory kernel (CPU all-reduce within a host) takes minutes to compile and nothing here
    needs it; whether an operation could be built is found out with a compiler; and its autotuner
    imports MLflow where that is installed, 1 to 2 s.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # ZeRO calls torch's collectives by their old names: a warning for every message
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with unimportable("mlflow"):
        import deepspeed
        import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}  # read as "none"; left alone, it would be probed for
    deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed


@contextlib.contextmanager
def unimportable(package: str) -> Iterator[None]:
    """Makes a package look as if it were not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
