"""Plans of a run as pure functions of numbers: learning rate by step, micro-batches, DeepSpeed's config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dfdet.config import Config, Optim
from dfdet.errors import ConfigError

LARGEST_BUCKET = 50_000_000
"""Gradients that ZeRO reduces in one message: 200 MB in float32 (elements)."""


@dataclass(frozen=True)
class Layout:
    """How a global batch is spread: world x accumulation x micro = global."""

    world: int
    """Ranks (processes)."""
    micro: int
    """Samples of one forward on one rank (samples)."""
    accumulation: int
    """Forwards of a rank in one optimizer step (times)."""

    @property
    def per_rank(self) -> int:
        """Samples of a rank in one optimizer step."""
        return self.micro * self.accumulation

    @property
    def global_batch(self) -> int:
        """Samples of all ranks in one optimizer step."""
        return self.world * self.per_rank


def batch_layout(global_batch: int, world: int, micro_batch: int | None, unit: int = 1) -> Layout:
    """The fewest micro-batches of at most ``micro_batch`` samples, equal on every rank.

    Args:
        unit: Samples that stay together: 2 where batches are made of pairs, those of a clip where of clips.

    Raises:
        ConfigError: ``global_batch`` does not divide, or ``micro_batch`` is smaller than a unit.
    """
    per_rank, rest = divmod(global_batch, world)
    if rest or per_rank % unit or not per_rank:
        nearest = max(1, global_batch // (world * unit)) * world * unit
        raise ConfigError(
            f"data.global_batch={global_batch}: not divisible by {world} workers x {unit};"
            f" set --data.global_batch {nearest}"
        )
    units, limit = per_rank // unit, (micro_batch or per_rank) // unit
    if limit < 1:
        raise ConfigError(
            f"engine.micro_batch={micro_batch}: smaller than the {unit} samples that stay together;"
            f" set --engine.micro_batch {unit}"
        )
    accumulation = next(
        count for count in range(1, units + 1) if units % count == 0 and units // count <= limit
    )
    return Layout(world, per_rank // accumulation, accumulation)


def learning_rate(step: int, steps_per_epoch: int, optim: Optim) -> float:
    """Learning rate of step ``step`` (0 is the first).

    Linear warm-up from lr / warm-up steps, then a cosine from ``lr`` to ``min_lr`` over what is left
    (``cosine``) or over each ``restart_epochs`` (``restarts``; SGDR, arXiv 1608.03983), or ``lr``.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    done, total = step - warmup, optim.epochs * steps_per_epoch - warmup
    if optim.schedule == "restarts":
        total = max(1, round(optim.restart_epochs * steps_per_epoch))
        done %= total
    fraction = min(1.0, done / max(1, total - 1))
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * fraction))


def deepspeed_config(config: Config, layout: Layout, trainable: int) -> dict[str, Any]:
    """DeepSpeed's JSON for a config. Its precision is float32: bf16 is the tower's own autocast, so
    that norms, head, masters and the gradients that are reduced stay float32 (bf16 copies of
    LayerNorm weights near 1 would hardly move).

    Args:
        trainable: Elements of all that trains.
    """
    stage = config.engine.zero_stage
    # All gradients in one message where that is small: ZeRO takes a buffer of this size at once, 2 GB
    # by default, and has nothing to overlap with backward then.
    bucket = min(trainable, LARGEST_BUCKET)
    zero = {"stage": stage, "reduce_bucket_size": bucket, "overlap_comm": trainable > bucket}
    return {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro,
        "gradient_accumulation_steps": layout.accumulation,
        # at stage 0 the optimizer clips, without waiting for the device
        "gradient_clipping": config.optim.clip_norm if stage else 0.0,
        "zero_optimization": zero,
        # the optimizer is torch's AdamW with a guard, which DeepSpeed does not know by name
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # on by default, and then it waits for the device twice a micro-batch
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
