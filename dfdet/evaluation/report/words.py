"""The words at the head of the report: what was evaluated, what came of it, where the threshold is from."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from dfdet import __version__
from dfdet.evaluation.report.facts import METRICS, headline, interval_text, number_text
from dfdet.evaluation.request import Model
from dfdet.evaluation.result import ORIGIN_VAL, Found, Result
from dfdet.evaluation.summary import MACRO


def title(result: Result) -> str:
    """Of the page."""
    labels = [found.model.label for found in result.found]
    sets = list(result.request.tests)
    return f"Evaluation of {_listed(labels)} on {_listed(sets)}"


def written() -> str:
    """By what and when."""
    return f"Written by dfdet {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."


def finding(found: Found) -> str:
    """A checkpoint's video-level AUROC in a sentence."""
    row = headline(found)
    sets = f"the {row.counts.sets} test sets" if row.set == MACRO else row.set
    estimate = row.metrics["auroc"]
    if estimate.value is None:
        return f"{found.model.label}: no AUROC on {sets}, {_why_none(row.counts.reals, row.counts.fakes)}."
    mean = "mean (macro) " if row.set == MACRO else ""
    bounds = interval_text(estimate)
    confidence = found.summary.settings.resampling.confidence
    interval = (
        f"{100 * confidence:g} % interval {bounds}" if bounds else "no interval: too few independent videos"
    )
    return (
        f"{found.model.label}: {mean}video AUROC {number_text(estimate.value)} on {sets} ({interval};"
        f" {row.counts.videos:,} videos)."
    )


def _why_none(reals: int, fakes: int) -> str:
    return f"which needs both classes: {reals:,} real and {fakes:,} fake videos"


def threshold_sentences(result: Result) -> list[str]:
    """Which thresholds are carried, and from where; those of one origin together."""
    alike: dict[str, list[str]] = {}
    for found in result.found:
        value = "no threshold" if found.threshold is None else f"threshold {found.threshold.threshold:.4f}"
        alike.setdefault(_origin(found), []).append(f"{found.model.label}: {value}")
    return ["; ".join(values) + origin for origin, values in alike.items()]


def _origin(found: Found) -> str:
    fitted = found.threshold
    if fitted is None:
        return ", so nothing is told that needs one; give --val NAME=SET.json to fit it."
    where = f"the equal error rate of {fitted.set_name} ({fitted.level}s, {fitted.frames:,} frames)"
    by = "fitted in this evaluation" if found.origin == ORIGIN_VAL else "as it came with the checkpoint"
    text = f", at {where}, {by}; carried to every test set."
    settings = found.summary.settings
    if settings.threshold_at("video") is None:
        text += f" It is for videos scored by {fitted.aggregate}, not by {settings.aggregate}:"
        text += " videos are told without it."
    return text


def scoring_sentence(result: Result) -> str:
    """How videos are scored and intervals made."""
    settings = result.found[0].summary.settings
    how, resampling = settings.aggregate, settings.resampling
    confidence = 100 * resampling.confidence
    by = {"mean": "the mean", "median": "the median", "max": "the highest"}.get(
        how, f"the mean of the {how[3:]} highest"
    )
    return (
        f"A video's score is {by} of its frames' fake probabilities. Intervals ({confidence:g} %)"
        f" are percentiles of {resampling.resamples:,} bootstrap resamples of clusters of videos that share a"
        " person or source. A dash: the set cannot tell, as a false alarm rate that takes more reals."
    )


def backbone_text(model: Model) -> str:
    """Tower and its weights."""
    config = model.config["model"]
    return f"{config['backbone']} ({config['pretrained'] or 'random start'}), {config['image_size']} px"


def tuning_text(model: Model) -> str:
    """What of the tower was trained, and the head."""
    tuning, head = model.config["tuning"], model.config["model"]["head"]
    rank = f" rank {tuning['lora_rank']}" if tuning["mode"] == "lora" else ""
    return f"{tuning['mode']}{rank}, {head} head"


def crop_text(model: Model) -> str:
    """How its faces were cut, and the margin they are scored at."""
    crop = model.crop
    parts = [f"template {crop.template}", f"scored at scale {model.crop_scale:g}"]
    parts += [f"stored at {crop.scale:g}"] if crop.scale is not None else []
    parts += [f"{crop.size_px} px"] if crop.size_px is not None else []
    parts += [crop.detector] if crop.detector else []
    return ", ".join(parts)


def unknown_metrics(result: Result) -> list[str]:
    """Metrics of the summary that no row has, which need no column."""
    told = {
        name
        for found in result.found
        for row in found.summary.rows
        for name, estimate in row.metrics.items()
        if estimate.value is not None
    }
    return [name for name in METRICS if name not in told]


def configuration(result: Result) -> dict[str, str]:
    """Options and configs as JSON, by their headings."""
    options = result.request.options.model_dump(mode="json")
    found = {"Options of the evaluation": json.dumps(options, indent=2)}
    for each in result.found:
        found[f"Config of {each.model.label}"] = json.dumps(each.model.config, indent=2)
    return found


def _listed(names: list[str], most: int = 4) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
