"""What an evaluation found, as plain data and as ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dfdet.evaluation import calibration, comparison, summary
from dfdet.evaluation.assemble import Scores
from dfdet.evaluation.bootstrap import Estimate, Resampling
from dfdet.evaluation.calibration import BeforeAfter
from dfdet.evaluation.comparison import Compared
from dfdet.evaluation.request import Model, Request
from dfdet.evaluation.scored import Scored
from dfdet.evaluation.summary import Settings, Summary
from dfdet.evaluation.threshold import Threshold

Estimates = dict[str, Estimate]

ORIGIN_VAL, ORIGIN_OWN, ORIGIN_NONE = "fitted in this evaluation", "of the checkpoint", "none"


@dataclass(frozen=True)
class Found:
    """Of one checkpoint."""

    model: Model
    threshold: Threshold | None
    origin: str
    """Where the threshold is from."""
    summary: Summary
    calibration: dict[str, BeforeAfter | None]
    """By the name of the test set; empty where there is no temperature."""
    robustness: dict[str, dict[str, Estimates]]
    """Video-level metrics by the name of the test set and of the corruption."""

    def metrics(self) -> dict[str, float | None]:
        """All metrics by their full names."""
        flat = self.summary.flat()
        for name, corrupted in self.robustness.items():
            for corruption, estimates in corrupted.items():
                for metric, estimate in estimates.items():
                    flat |= estimate.named(f"test/{name}/video/{metric}@{corruption}")
        for name, measured in self.calibration.items():
            if measured is not None:
                for level in ("frame", "video"):
                    before, after = getattr(measured, level)
                    flat |= {f"test/{name}/{level}/{k}_uncalibrated": v for k, v in before.flat().items()}
                    flat |= {f"test/{name}/{level}/{k}": v for k, v in after.flat().items()}
        return flat


@dataclass(frozen=True)
class Result:
    """Of all checkpoints."""

    request: Request
    scores: Scores
    found: tuple[Found, ...]
    compared: tuple[Compared, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``result.json`` has it; ``metrics`` are those of the first checkpoint."""
        return {
            "status": "finished",
            "request": self.request.record(),
            "options": self.request.options.model_dump(mode="json"),
            "metrics": self.found[0].metrics(),
            "checkpoints": {each.model.label: _model_json(each) for each in self.found},
            "comparison": [each.table_row() for each in self.compared],
            "skipped": self.scores.skipped,
        }


def _model_json(found: Found) -> dict[str, Any]:
    model = found.model
    return {
        "source": model.source,
        "fingerprint": model.fingerprint,
        "crop": model.crop.model_dump(mode="json"),
        "crop_scale": model.crop_scale,
        "threshold": found.threshold.model_dump(mode="json") if found.threshold else None,
        "threshold_origin": found.origin,
        "metrics": found.metrics(),
        "calibration": {name: asdict(each) if each else None for name, each in found.calibration.items()},
    }


def find(request: Request, scores: Scores) -> Result:
    """Everything that is told of the scores."""
    options = request.options
    resampling = Resampling(resamples=options.resamples, seed=options.seed)
    found, candidates = [], {}
    for model in request.models:
        fitted, origin = _threshold(model, list(scores.val[model.label].values()), options.aggregate)
        settings = Settings(options.aggregate, fitted, resampling)
        sets = list(scores.tests[model.label].values())
        candidates[model.label] = (sets, settings)
        temperature = fitted.temperature if fitted else None
        found.append(
            Found(
                model,
                fitted,
                origin,
                summary.summarise(sets, settings),
                {
                    each.name: calibration.before_and_after(each, temperature, options.aggregate)
                    for each in sets
                    if temperature is not None
                },
                {
                    name: {how: _video(scored, settings) for how, scored in corrupted.items()}
                    for name, corrupted in scores.corrupted[model.label].items()
                },
            )
        )
    compared = comparison.compare(candidates) if len(candidates) > 1 else ()
    return Result(request, scores, tuple(found), compared)


def _threshold(model: Model, validation: Sequence[Scored], aggregate: str) -> tuple[Threshold | None, str]:
    """The threshold to carry, and where it is from."""
    for scored in validation:
        if fitted := summary.fit_threshold(scored, aggregate):
            return fitted, ORIGIN_VAL
    if model.threshold is not None:
        return model.threshold, ORIGIN_OWN
    return None, ORIGIN_NONE


def _video(scored: Scored, settings: Settings) -> Estimates:
    """Video-level metrics without the undetected."""
    views = summary.views(scored, settings)
    return next(view.estimates for view in views if (view.level, view.undetected) == ("video", "excluded"))
