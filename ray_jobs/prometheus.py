"""What a run exports at Ray's Prometheus endpoint; ``deploy/grafana.json`` shows it."""

from __future__ import annotations

import time
from typing import Any

from dfdet.runs.runfolder import RunFolder
from dfdet.runs.tracking import numbers
from dfdet.sweep.drivers import HOME

GAUGES = {
    "step": ("dfdet_step", "Steps done"),
    "steps": ("dfdet_steps", "Steps of the whole run"),
    "epoch": ("dfdet_epoch", "Epochs done, the part of the present one included"),
    "perf/images_per_s": ("dfdet_images_per_second", "Images a second of all workers"),
    "perf/mfu": ("dfdet_mfu", "Model FLOPs utilisation (0 to 1)"),
    "perf/step_s": ("dfdet_step_seconds", "Duration of a step (seconds)"),
    "perf/data_wait_s": ("dfdet_data_wait_seconds", "Wait for data in a step (seconds)"),
    "perf/forward_s": ("dfdet_forward_seconds", "Forward pass in a step (seconds)"),
    "perf/backward_s": ("dfdet_backward_seconds", "Backward pass in a step (seconds)"),
    "perf/communication_s": ("dfdet_communication_seconds", "Communication in a step (seconds)"),
    "perf/optimizer_s": ("dfdet_optimizer_seconds", "Optimizer in a step (seconds)"),
    "perf/peak_memory_mib": ("dfdet_peak_memory_mib", "Peak memory of a worker (MiB)"),
    "perf/checkpoint_s": ("dfdet_checkpoint_seconds", "Writing of checkpoints, so far (seconds)"),
    "train/loss/total": ("dfdet_loss", "Training loss"),
    "train/loss/ce": ("dfdet_loss_ce", "Cross-entropy, without its weight"),
    "train/loss/alignment": ("dfdet_loss_alignment", "Alignment, without its weight"),
    "train/loss/uniformity": ("dfdet_loss_uniformity", "Uniformity, without its weight"),
    "optim/lr": ("dfdet_learning_rate", "Learning rate of the tower"),
}
COUNTERS = {
    "train/damaged": ("dfdet_damaged_samples_total", "Damaged samples that the first worker skipped"),
    "train/bad_steps": ("dfdet_bad_steps_total", "Skipped steps of non-finite loss or gradient"),
}
"""Keys of a record to Prometheus: name (which Ray begins with ``ray_``) and help."""
SCORE = ("dfdet_score", "Metric of a validation or test set")
"""Of records ``<split>/<set>/<level>/<metric>``, which are its tags."""
STARTED = ("dfdet_start_time_seconds", "When the first worker began (Unix time); each restart changes it")
INTERVALS = ("_low", "_high")


def run_and_trial(run: RunFolder) -> tuple[str, str]:
    """The names that tags tell: of the run, and nothing; in a sweep of that, and of the run in it."""
    sweep = run.path.parent
    return (sweep.name, run.path.name) if (sweep / HOME).is_file() else (run.path.name, "")


class Prometheus:
    """Gauges and counters at Ray's metrics endpoint, tagged by run, trial and rank.

    Only the first rank has records; its speed and loss are those of all.
    """

    def __init__(self, run: RunFolder, rank: int) -> None:
        from ray.util.metrics import Counter, Gauge

        name, trial = run_and_trial(run)
        tags = {"run": name, "trial": trial, "rank": str(rank)}
        self._gauges = {key: Gauge(*about, tag_keys=tuple(tags)) for key, about in GAUGES.items()}
        self._counters = {key: Counter(*about, tag_keys=tuple(tags)) for key, about in COUNTERS.items()}
        self._score = Gauge(*SCORE, tag_keys=(*tags, "split", "set", "level", "metric"))
        started = Gauge(*STARTED, tag_keys=tuple(tags))
        for metric in [*self._gauges.values(), *self._counters.values(), self._score, started]:
            metric.set_default_tags(tags)
        started.set(time.time())
        self._counted = dict.fromkeys(COUNTERS, 0.0)

    def record(self, metrics: dict[str, Any]) -> None:
        """Sets the gauges, and adds what the counts have grown by."""
        values = numbers(metrics) | {key: float(metrics[key]) for key in ("step", "steps") if key in metrics}
        for key, value in values.items():
            if key in self._gauges:
                self._gauges[key].set(value)
            elif key in self._counters:
                self._count(key, value)
            elif tags := score_tags(key):
                self._score.set(value, tags=tags)

    def _count(self, key: str, value: float) -> None:
        if value > self._counted[key]:
            self._counters[key].inc(value - self._counted[key])
            self._counted[key] = value

    def close(self) -> None:
        """Nothing: Ray exports until the process ends."""


def score_tags(key: str) -> dict[str, str] | None:
    """Tags of a metric of a set; None for another key, and for ends of intervals and single methods."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] not in {"val", "test"} or key.endswith(INTERVALS):
        return None
    return dict(zip(("split", "set", "level", "metric"), parts, strict=True))
