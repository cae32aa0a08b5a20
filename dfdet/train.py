"""Training, top to bottom: seed, data, model, resume, dry batch, engine, loop, final evaluation.

The same function runs in one process without Ray and in each Ray Train worker; all it knows of its
surroundings is the context.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from dfdet import checkpoint, finish, plots, resume
from dfdet.checkpoint import CheckpointState
from dfdet.config import Config
from dfdet.context import Context, agree
from dfdet.data import device_augment
from dfdet.data.loader import Loader, check_crop_scale
from dfdet.data.plan import epoch_plan, fingerprint, unpaired
from dfdet.data.sets import open_run_data
from dfdet.detector import Detector, build_detector, frozen_sha256
from dfdet.engine import Tensors, TrainEngine, dry_batch
from dfdet.errors import ShardSetError, TrainingError
from dfdet.evaluate import score_index, thread_resize, worker_threads
from dfdet.losses import Terms
from dfdet.meter import Meter
from dfdet.result import versions
from dfdet.schedule import batch_layout, learning_rate

logger = logging.getLogger(__name__)


def train(config: Config, context: Context) -> dict[str, Any]:
    """Runs a config to its end, from its newest checkpoint on if it has one.

    Returns:
        What ``result.json`` holds; ``status`` is ``finished``, or ``stopped`` after a stop request.

    Raises:
        DfdetError: Bad input, a damaged sample, or non-finite steps past the bound.
    """
    started = time.monotonic()
    torch.manual_seed(config.run.seed)
    if context.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))

    trainer = Trainer(config, context)
    reason = trainer.loop()
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
        result["metrics"], best = finish.evaluate_best(config, context, trainer.data)
        result["best_checkpoint"] = str(best)
        result["checkpoint_bytes"] = {path.name: path.stat().st_size for path in sorted(best.iterdir())}
    result |= {
        "step": trainer.state.step,
        "epoch": trainer.state.epoch,
        "counts": trainer.counts
        | {"bad_steps": trainer.state.bad_steps, "damaged": dict(trainer.loader.damaged)},
        "timings": {"worker_s": round(time.monotonic() - started, 2)},
        "world_size": context.world_size,
        "versions": versions(),
    }
    if context.rank == 0:
        conclude(result, context)
    return result


def conclude(result: dict[str, Any], context: Context) -> None:
    """Records the result, last of all in ``result.json``."""
    run = context.run
    if result["status"] == "finished":
        run.append_metrics({"step": result["step"], "epoch": result["epoch"], **result["metrics"]})
    else:
        logger.info("stopped at step %d (%s)", result["step"], result["reason"])
    plots.training_curves(run.metrics_jsonl, run.plots)
    run.write_result(result)


class Trainer:
    """One process's part in a run: built in order, then looped."""

    def __init__(self, config: Config, context: Context) -> None:
        self.config, self.context = config, context
        self.device, self.first = context.device, context.rank == 0

        self.data = open_run_data(config)
        self.fingerprint = fingerprint(self.data.train.digest, self.data.spec)
        self.layout = batch_layout(
            config.data.global_batch, context.world_size, config.engine.micro_batch, self.data.spec.unit_size
        )
        check_crop_scale(self.data.train, config.data.crop_scale)

        detector = build_detector(config, device=self.device)
        self.loader = self._make_loader(detector)
        self.state, moments = self._resume(detector)
        self.backbone = self._describe_backbone(detector)
        # a tower without published weights exists nowhere else: checkpoints keep it
        pretrained = config.model.pretrained is not None
        self.frozen = None if pretrained else {k: v.cpu().clone() for k, v in detector.frozen().items()}
        self.counts = self._count(detector)

        if config.engine.dry_batch:
            dry_batch(detector, config, self.layout, self.loader.side, self.device)
        self.engine = TrainEngine(detector, config, self.layout, context.rank, self.device, moments)

    def close(self) -> None:
        """Frees the engine and the loader."""
        self.loader.close()
        del self.engine

    # ---------------------------------------------------------------- before the first step

    def _make_loader(self, detector: Detector) -> Loader:
        data = self.config.data
        return Loader(
            self.data.train,
            crop_scale=data.crop_scale,
            augment=data.augment,
            seed=self.config.run.seed,
            threads=worker_threads(self.config),
            prefetch=data.prefetch,
            on_damage=data.on_damage,
            max_damaged=data.max_damaged,
            # On a CPU the threads are 25 times faster than batched tensors.
            rest_on_device=self.device.type != "cpu",
            resize=thread_resize(self.config, detector),
            pin=self.device.type == "cuda",
        )

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

    def _describe_backbone(self, detector: Detector) -> dict[str, Any]:
        model = self.config.model
        return {
            "name": model.backbone,
            "pretrained": model.pretrained,
            "image_size": model.image_size,
            "frozen_sha256": frozen_sha256(detector) if self.first else None,
        }

    def _count(self, detector: Detector) -> dict[str, int]:
        counts = {
            "trained_parameters": sum(p.numel() for p in detector.trainable().values()),
            "frozen_parameters": sum(tensor.numel() for tensor in detector.frozen().values()),
            "train_samples": len(self.data.train),
            "unpaired_samples": unpaired(self.data.train, self.config.data.sampling),
            "steps_per_epoch": self.data.steps_per_epoch,
        }
        if self.first:
            logger.info(
                "%s, tuning %s: %s parameters train, %s are frozen",
                self.config.model.backbone,
                self.config.tuning.mode,
                f"{counts['trained_parameters']:,}",
                f"{counts['frozen_parameters']:,}",
            )
            logger.info(
                "%d samples (%d without a partner left out), %d steps an epoch of %d samples = %d workers"
                " x %d micro-batches x %d",
                counts["train_samples"],
                counts["unpaired_samples"],
                counts["steps_per_epoch"],
                self.layout.global_batch,
                self.layout.world,
                self.layout.accumulation,
                self.layout.micro,
            )
        return counts

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
        meter = Meter(config.data.global_batch, self.device)
        bad_before = self.state.bad_steps - int(self.engine.bad_steps.item())
        batches = self.loader.batches(
            plan, epoch=epoch, rank=context.rank, world=context.world_size, start=self.state.batch
        )
        for batch in meter.waiting(batches):
            rate = learning_rate(self.state.step, self.data.steps_per_epoch, config.optim)
            batch = device_augment.finish(batch, self.device)
            terms = self.engine.step(batch, (config.run.seed, epoch, self.state.batch), rate)
            self._update(step=self.state.step + 1, batch=self.state.batch + 1)
            meter.step()
            if self.state.step % config.engine.log_every == 0 or self.state.batch == len(plan):
                self._update(bad_steps=bad_before + int(self.engine.bad_steps.item()))
                self._log_step(terms, rate, meter)
                if reason := self._stop_reason():
                    self._checkpoint()
                    return reason
            if self.state.step % config.engine.checkpoint_every == 0 and self.state.batch < len(plan):
                self._checkpoint()
        return None

    def _out_of_patience(self) -> bool:
        patience = self.config.optim.patience
        return bool(patience) and self.state.evaluations_since_best >= patience

    def _stop_reason(self) -> str | None:
        reason = self.context.run.stop_requested() if self.first else None
        return (reason or "asked to stop") if agree(reason is not None, self.context) else None

    def _log_step(self, terms: Terms, rate: float, meter: Meter) -> None:
        state, config = self.state, self.config
        if state.bad_steps >= config.engine.max_bad_steps:
            raise TrainingError(
                f"{state.bad_steps} steps up to step {state.step} had a non-finite loss or gradient (all"
                " skipped): lower --optim.lr, set --optim.clip_norm 1, or raise --engine.max_bad_steps"
            )
        speed = meter.read()
        if not self.first:
            return
        losses = {f"train/loss/{name}": float(value) for name, value in vars(terms).items()}
        steps = self.data.steps_per_epoch * config.optim.epochs
        self.context.run.append_metrics(
            {
                "step": state.step,
                "steps": steps,
                "epoch": round(state.epoch + state.batch / self.data.steps_per_epoch, 6),
                **losses,
                "optim/lr": rate,
                "train/bad_steps": state.bad_steps,
                "train/damaged": sum(self.loader.damaged.values()),
                **speed,
            }
        )
        logger.info(
            "step %d/%d  loss %.4f  lr %.1e  %.0f images/s  data wait %.0f %%",
            state.step,
            steps,
            losses["train/loss/total"],
            rate,
            speed["perf/images_per_s"],
            100 * speed["perf/data_wait_s"] / max(speed["perf/step_s"], 1e-9),
        )

    # ---------------------------------------------------------------- epoch ends

    def _end_epoch(self) -> None:
        """Validates, keeps the checkpoint, tells the outside."""
        epochs = self.config.optim.epochs
        self._update(epoch=self.state.epoch + 1, batch=0)
        due = self.state.epoch % self.config.eval.every_epochs == 0 or self.state.epoch == epochs
        found: dict[str, float | None] = {}
        for name, index in self.data.val.items() if due else ():
            scores = score_index(self.engine.detector, self.engine.engine, index, self.config, self.context)
            found |= scores.metrics("val", name)
        best = bool(found) and self._judge(found)
        path = self._checkpoint(best=best)
        if self.first and found:
            self.context.run.append_metrics({"step": self.state.step, "epoch": self.state.epoch, **found})
            logger.info("epoch %d/%d  %s%s", self.state.epoch, epochs, _brief(found), "  (best)" * best)
        plain = {name: float(value) for name, value in found.items() if value is not None}
        self.context.report(
            plain | {"epoch": self.state.epoch, "step": self.state.step, "checkpoint_path": str(path)}
        )

    def _judge(self, found: dict[str, float | None]) -> bool:
        """Whether this is the best epoch so far, by the first validation set's video AP."""
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
        return f"val/{next(iter(self.data.val))}/video/ap"

    def _checkpoint(self, best: bool = False) -> Path:
        """Saves what trains: gathered by all ranks, written by the first."""
        folder = self.context.run.checkpoints
        trained, moments = self.engine.weights(), self.engine.moments()
        if not self.first:
            return folder / checkpoint.step_name(self.state.step)
        path = checkpoint.save(
            folder,
            state=self.state,
            trained=trained,
            optimizer=moments,
            config_json=self.config.to_json(),
            crop=self.data.train.crop,
            backbone=self.backbone,
            frozen=self.frozen,
        )
        if best and self.state.best_metric is not None:
            checkpoint.mark_best(folder, path, self._best_name, self.state.best_metric)
        checkpoint.prune(folder, self.config.engine.keep_last)
        return path


def _brief(found: dict[str, float | None]) -> str:
    shown = ("video/auroc", "video/ap")
    return "  ".join(f"{k} {v:.4f}" for k, v in found.items() if k.endswith(shown) and v is not None)
