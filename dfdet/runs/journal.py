"""What a run says of itself while it trains: lines of the log and records of metrics."""

from __future__ import annotations

import logging
from typing import Any

from dfdet.checkpoints.checkpoint import CheckpointState
from dfdet.config import Config
from dfdet.training.losses import Terms
from dfdet.training.schedule import Layout

logger = logging.getLogger(__name__)


def say_layout(config: Config, counts: dict[str, int], layout: Layout) -> None:
    """Logs, before the first step, what trains and how batches are spread."""
    logger.info(
        "%s, tuning %s: %s parameters train, %s are frozen",
        config.model.backbone,
        config.tuning.mode,
        f"{counts['trained_parameters']:,}",
        f"{counts['frozen_parameters']:,}",
    )
    logger.info(
        "%d samples (%d without a partner left out), %d steps an epoch of %d samples = %d workers"
        " x %d micro-batches x %d",
        counts["train_samples"],
        counts["unpaired_samples"],
        counts["steps_per_epoch"],
        layout.global_batch,
        layout.world,
        layout.accumulation,
        layout.micro,
    )


def step_record(
    state: CheckpointState, terms: Terms, speed: dict[str, float], *, steps: int, steps_per_epoch: int
) -> dict[str, Any]:
    """A record of ``metrics.jsonl`` at a log step; waits for the device.

    Args:
        state: Where the run stands, this step done.
        terms: The step's losses.
        speed: Metrics ``perf/...``.
        steps: Of the whole run.
        steps_per_epoch: Of an epoch.
    """
    return {
        "step": state.step,
        "steps": steps,
        "epoch": round(state.epoch + state.batch / steps_per_epoch, 6),
        **{f"train/loss/{name}": float(value) for name, value in vars(terms).items()},
        "train/bad_steps": state.bad_steps,
        **speed,
    }


def say_step(record: dict[str, Any]) -> None:
    """Logs a step's record in a line."""
    mfu = f"  MFU {100 * record['perf/mfu']:.0f} %" if "perf/mfu" in record else ""
    logger.info(
        "step %d/%d  loss %.4f  lr %.1e  %.0f images/s%s  data wait %.0f %%",
        record["step"],
        record["steps"],
        record["train/loss/total"],
        record["optim/lr"],
        record["perf/images_per_s"],
        mfu,
        100 * record["perf/data_wait_s"] / max(record["perf/step_s"], 1e-9),
    )


def say_epoch(epoch: int, epochs: int, found: dict[str, float | None], *, best: bool) -> None:
    """Logs an epoch's validation in a line."""
    shown = ("video/auroc", "video/ap", "video/ap_temporal")
    brief = "  ".join(f"{k} {v:.4f}" for k, v in found.items() if k.endswith(shown) and v is not None)
    logger.info("epoch %d/%d  %s%s", epoch, epochs, brief, "  (best)" * best)


def say_speed(speed: dict[str, float]) -> None:
    """Logs, at the end, where the run's time went."""
    if not speed:
        return
    parts = ", ".join(
        f"{name.replace('_', ' ')} {1000 * speed[f'perf/{name}_s']:.1f}"
        for name in ("data_wait", "forward", "backward", "communication", "optimizer")
    )
    mfu = f", MFU {100 * speed['perf/mfu']:.0f} %" if "perf/mfu" in speed else ""
    logger.info(
        "%.0f images/s%s; a step of %.1f ms: %s ms; at most %.0f MiB",
        speed["perf/images_per_s"],
        mfu,
        1000 * speed["perf/step_s"],
        parts,
        speed["perf/peak_memory_mib"],
    )
