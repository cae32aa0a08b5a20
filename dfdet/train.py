"""Training, top to bottom: seed, data, model, resume, dry batch, engine, loop, final evaluation.

The same function runs in one process without Ray and in each Ray Train worker; all it knows of its
surroundings is the context.
"""

from __future__ import annotations

import logging
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from dfdet import build, finish
from dfdet.checkpoints import checkpoint, resume
from dfdet.checkpoints.checkpoint import CheckpointState
from dfdet.checkpoints.saver import leave_together, wait_together
from dfdet.config import Config
from dfdet.context import Context, agree
from dfdet.data import device_augment
from dfdet.data.loader import Batch
from dfdet.data.plan import epoch_plan, fingerprint
from dfdet.data.sets import open_run_data
from dfdet.errors import ShardSetError, TrainingError
from dfdet.evaluation import plots
from dfdet.evaluation.evaluate import score_index, temporal
from dfdet.hang.progress import PROGRESS
from dfdet.model.detector import Detector, build_detector
from dfdet.runs import journal
from dfdet.runs.patience import patiently
from dfdet.runs.result import versions
from dfdet.training import determinism
from dfdet.training.engine import Tensors, TrainEngine, dry_batch
from dfdet.training.gather import all_gather_rows
from dfdet.training.losses import Terms
from dfdet.training.meter import Meter
from dfdet.training.schedule import batch_layout, learning_rate

logger = logging.getLogger(__name__)


def train(config: Config, context: Context) -> dict[str, Any]:
    """Runs a config to its end, from its newest checkpoint on if it has one.

    Returns:
        What ``result.json`` holds; ``status`` is ``finished``, or ``stopped`` after a stop request.

    Raises:
        DfdetError: Bad input, a damaged sample, or non-finite steps past the bound.
    """
    started = time.monotonic()
    determinism.seed_everything(config.run.seed)
    if config.run.deterministic:
        determinism.enforce()
    if context.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))

    trainer = Trainer(config, context)
    built_s = time.monotonic() - started
    try:
        reason = trainer.loop()
        PROGRESS.mark("wait for checkpoints")
        wait_together(context, trainer.saver)
    finally:
        trainer.close()
    result: dict[str, Any] = {
        "status": "stopped" if reason else "finished",
        "recipe": config.run.recipe,
        "reason": reason,
        "metrics": trainer.state.metrics,
        "best_checkpoint": None,
        "checkpoint_bytes": {},
    }
    if reason is None:
        PROGRESS.mark("best checkpoint")
        result["metrics"], best = finish.evaluate_best(config, context, trainer.data)
        result["best_checkpoint"] = context.run.named(best)
        result["checkpoint_bytes"] = {path.name: path.stat().st_size for path in sorted(best.iterdir())}
    result |= {
        "step": trainer.state.step,
        "epoch": trainer.state.epoch,
        "counts": trainer.counts
        | {"bad_steps": trainer.state.bad_steps, "damaged": dict(trainer.loader.damaged)},
        "speed": trainer.speed(),
        "timings": {"worker_s": round(time.monotonic() - started, 2), "build_s": round(built_s, 2)}
        | {"startup_s": context.startup.parts}
        | trainer.timings(),
        "world_size": context.world_size,
        "versions": versions(),
    }
    if context.rank == 0:
        conclude(result, context, config.engine.storage_patience_s)
    return result


def conclude(result: dict[str, Any], context: Context, patience_s: float) -> None:
    """Records the result, last of all in ``result.json``."""
    run = context.run
    journal.say_speed(result["speed"])
    if result["status"] == "finished":
        # a kill between this and result.json must not double it: a resume drops what is final
        context.record({"step": result["step"], "epoch": result["epoch"], "final": True, **result["metrics"]})
    else:
        logger.info("stopped at step %d (%s)", result["step"], result["reason"])
    run.flush_metrics(patience_s)
    patiently(lambda: plots.training_curves(run.metrics_jsonl, run.plots), str(run.plots), patience_s)
    run.write_result(result, patience_s)


class Trainer:
    """One process's part in a run: built in order, then looped."""

    def __init__(self, config: Config, context: Context) -> None:
        self.config, self.context = config, context
        self.device, self.first = context.device, context.rank == 0

        PROGRESS.mark("opening the data")
        self.data = open_run_data(config)
        self.fingerprint = fingerprint(self.data.train.digest, self.data.spec)
        self.layout = batch_layout(
            config.data.global_batch, context.world_size, config.engine.micro_batch, self.data.spec.unit_size
        )
        context.startup.mark("data")

        PROGRESS.mark("building the model")
        detector = build_detector(config, device=self.device)
        self.loader = build.train_loader(config, self.data.train, detector, self.device)
        self.state, moments = self._resume(detector)
        self.backbone = build.describe_backbone(config, detector) if self.first else {}
        # a tower without published weights exists nowhere else: checkpoints keep it
        pretrained = config.model.pretrained is not None
        self.frozen = None if pretrained else {k: v.cpu().clone() for k, v in detector.frozen().items()}
        self.counts = build.count(config, self.data, detector)
        if self.first:
            journal.say_layout(config, self.counts, self.layout)
        self.saver = build.saver(config, context) if self.first else None
        needed, peak = build.flops_and_peak(config, detector, self.device) if self.first else (None, None)
        context.startup.mark("model")
        PROGRESS.mark("dry batch")
        if config.engine.dry_batch or config.engine.compile:
            dry_batch(detector, config, self.layout, self.loader.side, self.device)
        context.startup.mark("dry batch")
        PROGRESS.mark("starting the engine")
        self.engine = TrainEngine(detector, config, self.layout, context.rank, self.device, moments)
        self.meter = Meter(
            config.data.global_batch, self.device, self.engine.clock, needed, peak, context.world_size
        )
        context.startup.mark("engine")

    def close(self) -> None:
        """Writes what is in hand; frees the engine and the loader."""
        if self.saver:
            self.saver.close()
        self.loader.close()
        del self.engine

    def speed(self) -> dict[str, float]:
        """Of the steps of this process, ``perf/...``."""
        return self.meter.totals()

    def timings(self) -> dict[str, float]:
        """Of checkpoints: written beside training, and waited for (seconds)."""
        if self.saver is None:
            return {}
        return {
            "checkpoints_s": round(self.saver.write_s, 2),
            "checkpoints_waited_s": round(self.saver.blocked_s, 2),
        }

    # ---------------------------------------------------------------- before the first step

    def _resume(self, detector: Detector) -> tuple[CheckpointState, dict[str, Tensors] | None]:
        """The state to start from; the newest whole checkpoint goes into the detector."""
        path = resume.newest(self.context)
        if path is None:
            seed = self.config.run.seed
            return CheckpointState(step=0, epoch=0, batch=0, fingerprint=self.fingerprint, seed=seed), None
        state = checkpoint.load_state(path)
        resume.check_same_data(state, self.fingerprint, path)
        loaded = resume.restore(detector, path)
        if self.first:
            resume.check_same_tower(detector, path, self.config.model.pretrained)
            self.context.run.truncate_metrics(state.step)
            logger.info("resumed at step %d (epoch %d, batch %d)", state.step, state.epoch, state.batch)
        return state, loaded.optimizer

    def _update(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)

    # ---------------------------------------------------------------- the loop

    def loop(self) -> str | None:
        """Trains to the last epoch; gives the reason if it was stopped before."""
        config = self.config
        while self.state.epoch < config.optim.epochs and not self._out_of_patience():
            if reason := self._epoch():
                return reason
            self._end_epoch()
        return None

    def _epoch(self) -> str | None:
        """The rest of the current epoch; gives the reason if it was stopped."""
        config, context, epoch = self.config, self.context, self.state.epoch
        plan = epoch_plan(self.data.train, self.data.spec, epoch)
        bad_before = self.state.bad_steps - int(self.engine.bad_steps.item())
        batches = self.loader.batches(
            plan, epoch=epoch, rank=context.rank, world=context.world_size, start=self.state.batch
        )
        marked = PROGRESS.through(batches, "data wait", "forward and backward", self.state.step + 1)
        for batch in self.meter.waiting(marked):
            rate = learning_rate(self.state.step, self.data.steps_per_epoch, config.optim)
            batch = device_augment.finish(batch, self.device)
            terms = self.engine.step(batch, (config.run.seed, epoch, self.state.batch), rate)
            self._update(step=self.state.step + 1, batch=self.state.batch + 1)
            self.meter.step()
            if "first step" not in context.startup.parts:
                context.startup.mark("first step")
                if self.first:
                    logger.info("%s", context.startup)
            if self.state.step % config.engine.log_every == 0 or self.state.batch == len(plan):
                PROGRESS.mark("log")
                self._update(bad_steps=bad_before + int(self.engine.bad_steps.item()))
                self._log_step(terms, rate, self._batch_crc32(batch))
                if reason := self._heed():
                    return reason
            if self.state.step % config.engine.checkpoint_every == 0 and self.state.batch < len(plan):
                self._checkpoint()
        return None

    def _out_of_patience(self) -> bool:
        patience = self.config.optim.patience
        return bool(patience) and self.state.evaluations_since_best >= patience

    def _batch_crc32(self, batch: Batch) -> int:
        """CRC of the global batch's sample ids, in its order: tells, on any topology, what a step saw."""
        ids = all_gather_rows(torch.from_numpy(batch.ids).to(self.device))
        return zlib.crc32(ids.cpu().numpy().tobytes())

    def _log_step(self, terms: Terms, rate: float, batch_crc32: int) -> None:
        state, config = self.state, self.config
        if state.bad_steps >= config.engine.max_bad_steps:
            raise TrainingError(
                f"{state.bad_steps} steps up to step {state.step} had a non-finite loss or gradient (all"
                " skipped): lower --optim.lr, set --optim.clip_norm 1, or raise --engine.max_bad_steps"
            )
        speed = self.meter.read()
        if not self.first:
            return
        per_epoch = self.data.steps_per_epoch
        record = journal.step_record(
            state, terms, speed, steps=per_epoch * config.optim.epochs, steps_per_epoch=per_epoch
        )
        assert self.saver is not None
        record |= {
            "optim/lr": rate,
            "perf/checkpoint_s": round(self.saver.write_s, 3),
            "train/batch_crc32": batch_crc32,
            "train/damaged": sum(self.loader.damaged.values()),
        }
        self.context.record(record)
        journal.say_step(record)

    def _heed(self) -> str | None:
        """Heeds, with all ranks alike, what came from outside; gives the reason for a stop."""
        context = self.context
        asked = context.stop_reason() is not None
        failed = self.saver is not None and self.saver.failed
        stop, danger, failed = agree(context, asked, context.in_danger(), failed)
        leave_together(failed, self.saver)
        if stop or danger:
            self._checkpoint()
        # asked again: the one that was told has left the reason in the run folder
        return (context.stop_reason() or "another worker was asked to stop") if stop else None

    # ---------------------------------------------------------------- epoch ends

    def _end_epoch(self) -> None:
        """Validates, keeps the checkpoint, tells the outside."""
        epochs = self.config.optim.epochs
        PROGRESS.mark("end of epoch", self.state.step)
        self._update(epoch=self.state.epoch + 1, batch=0)
        due = self.state.epoch % self.config.eval.every_epochs == 0 or self.state.epoch == epochs
        found: dict[str, float | None] = {}
        for name, index in self.data.val.items() if due else ():
            scores = score_index(self.engine.detector, self.engine.engine, index, self.config, self.context)
            found |= scores.metrics("val", name)
        best = bool(found) and self._judge(found)
        if self.first and found:
            self.context.record({"step": self.state.step, "epoch": self.state.epoch, **found})
            journal.say_epoch(self.state.epoch, epochs, found, best=best)
        # after the record: a kill between the two repeats the epoch's end, and loses nothing
        path = self._checkpoint(found.get(self._best_name) if found else None, best=best)
        PROGRESS.mark("report")
        plain = {name: float(value) for name, value in found.items() if value is not None}
        self.context.report(
            plain
            | {
                "epoch": self.state.epoch,
                "step": self.state.step,
                "checkpoint_path": self.context.run.named(path),
            }
        )

    def _judge(self, found: dict[str, float | None]) -> bool:
        """Whether this is the best epoch so far, by the first validation set's video AP (of clips)."""
        value = found[self._best_name]
        if value is None:
            raise ShardSetError(
                f"data.val={self.config.data.val[0]}: has only reals or only fakes, so it cannot choose"
                " the best checkpoint; give a set with both"
            )
        self._update(metrics=found)
        if self.state.best_metric is not None and value <= self.state.best_metric:
            self._update(evaluations_since_best=self.state.evaluations_since_best + 1)
            return False
        self._update(best_metric=value, best_step=self.state.step, evaluations_since_best=0)
        return True

    @property
    def _best_name(self) -> str:
        name = f"val/{next(iter(self.data.val))}/video/ap"
        return temporal(name) if self.config.model.temporal else name

    def _checkpoint(self, metric: float | None = None, *, best: bool = False) -> Path:
        """Saves what trains: gathered by all ranks, written by the first beside training.

        Args:
            metric: Value of the metric that chooses checkpoints, where it was evaluated at this step.
            best: Whether it is the best so far.
        """
        PROGRESS.mark("checkpoint")
        trained, moments = self.engine.weights(), self.engine.moments()
        if self.saver is None:
            return self.context.run.checkpoints / checkpoint.step_name(self.state.step)
        return self.saver.save(
            best=(self._best_name, metric) if best and metric is not None else None,
            metric=metric,
            state=self.state,
            trained=trained,
            optimizer=moments,
            config_json=self.config.to_json(),
            crop=self.data.train.crop,
            backbone=self.backbone,
            frozen=self.frozen,
        )
