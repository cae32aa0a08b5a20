"""The end of a run: the best checkpoint on validation and test sets, its threshold, and the result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dfdet.checkpoints import checkpoint
from dfdet.checkpoints.resume import restore
from dfdet.config import Config
from dfdet.context import Context, from_first
from dfdet.data.sets import RunData
from dfdet.evaluation import plots, threshold
from dfdet.evaluation.evaluate import Scores, score_index
from dfdet.model.detector import build_detector
from dfdet.runs.patience import patiently

logger = logging.getLogger(__name__)


def evaluate_best(config: Config, context: Context, data: RunData) -> tuple[dict[str, Any], Path]:
    """Metrics of the best checkpoint on all sets, and its path; a collective.

    The threshold is fitted on the first validation set, kept beside the checkpoint, and carried to
    the test sets.
    """
    folder = context.run.checkpoints
    first, patience_s = context.rank == 0, config.engine.storage_patience_s
    step = from_first(checkpoint.load_state(checkpoint.resolve(folder)).step if first else 0, context)
    best = context.run.checkpoint(checkpoint.step_name(step))
    detector = build_detector(config, device=context.device)
    restore(detector, best)

    found: dict[str, Any] = {}
    fitted: threshold.Threshold | None = None
    for number, (name, index) in enumerate(data.val.items()):
        scores = score_index(detector, detector, index, config, context)
        if number == 0:
            fitted = _fit(scores, name)
        found |= scores.metrics("val", name, fitted.threshold if fitted else None)
    for name, index in data.test.items():
        scores = score_index(detector, detector, index, config, context)
        found |= scores.metrics("test", name, fitted.threshold if fitted else None)
        if first:
            _histogram(scores, context.run.plots / f"scores-{name}.png", patience_s)
    if first and fitted is not None:
        record = fitted.model_dump()
        patiently(lambda: checkpoint.add_json(best, "threshold.json", record), str(best), patience_s)
    return found, best


def _fit(scores: Scores, name: str) -> threshold.Threshold | None:
    index, ids = scores.index, scores.ids
    video = index.video[ids]
    return threshold.fit(scores.labels, scores.scores, index.digest, name, video=video, logits=scores.logits)


def _histogram(scores: Scores, path: Path, patience_s: float) -> None:
    methods = [scores.index.methods[code] for code in scores.index.method[scores.ids]]
    patiently(
        lambda: plots.score_histogram(scores.labels, scores.scores, methods, path), str(path), patience_s
    )
