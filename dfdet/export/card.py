"""``MODEL_CARD.md``: what a detector is, was trained on and measured at, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from dfdet.config import leaves
from dfdet.export import hugging_face, records, trained
from dfdet.export.graph import Deployed
from dfdet.export.request import Request
from dfdet.export.trained import Trained, TrainedSet
from dfdet.published.towers.clip import NAMES

METRICS = {
    "auroc": "AUROC",
    "ap": "AP (fake)",
    "eer": "EER",
    "balanced_accuracy": "balanced accuracy",
    "tpr_at_fpr_5e-2": "TPR at FPR 5 %",
}
"""Those in the tables."""
RECIPE = ("run.recipe", "model.", "tuning.", "loss.", "optim.", "data.sampling", "data.global_batch")
"""Prefixes of the fields that the card tells."""
PLACES = 4


def write(request: Request, model: Deployed, parity: dict[str, Any]) -> str:
    """The card's text (Markdown).

    Args:
        request: What was exported.
        model: The exported model.
        parity: What ``parity.json`` holds.
    """
    facts = trained.read(request.opened)
    sections = {
        "What it is": _what(request, model),
        "Intended use": USE,
        "Out of scope, and limits": LIMITS,
        "Training data": _data(request, facts),
        "Recipe": _recipe(request, facts),
        "Measured": _measured(request, facts),
        "Threshold": _threshold(request),
        "Precision": _precision(parity),
        "How to use": _use(request),
        "Versions": _versions(facts),
        "Checksums": CHECKSUMS,
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return f"{_header(request)}\n# {request.name}: a face-deepfake detector\n\n{body}\n"


def _header(request: Request) -> str:
    """YAML as Hugging Face's hub reads it; the licence is for who publishes to choose."""
    config = request.opened.config
    bases = {ours: theirs for theirs, ours in NAMES.items()}
    tower = bases.get(config.model.backbone) if config.model.pretrained == "openai" else None
    lines = [
        "# license: choose one before publishing; weights and datasets may restrict the choice",
        *(["base_model: " + tower] if tower else []),
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("deepfake-detection", "face-forgery-detection", "image-classification")),
        "metrics:",
        "- roc_auc",
        "- average_precision",
    ]
    return "\n".join(["---", *lines, "---"])


def _what(request: Request, model: Deployed) -> str:
    opened, config = request.opened, request.opened.config
    numbers = sum(parameter.numel() for parameter in model.parameters())
    trains = sum(parameter.numel() for parameter in opened.detector.trainable().values())
    source = "of a run of dfdet" if opened.folder else "published by others"
    if opened.source.startswith("hf:"):
        source += f" (`{opened.source}`)"
    head = config.model.head if config.model.head != "linear" else _linear(config.model.normalize)
    return (
        f"A detector of face deepfakes {source}: the vision tower `{config.model.backbone}`"
        f" ({_weights(request)}) with a {head} head, {numbers:,} parameters, of which {trains:,} were trained"
        f" (`tuning.mode` {config.tuning.mode}). It takes a square crop of one face (uint8 RGB) and gives its"
        " fake probability. Fingerprint of the weights:"
        f" `{opened.fingerprint}`."
    )


def _linear(normalize: bool) -> str:
    return f"linear (on {'L2-normalised' if normalize else 'plain'} features)"


def _weights(request: Request) -> str:
    name = records.pretrained_name(request.opened.config)
    if request.opened.folder is None:
        return "weights of the published file"
    return f"pretrained weights `{name}`" if name else "randomly initialised"


USE = """\
To sort and flag images and videos of faces for people who look further: content moderation, fact
checking, research on forgeries. A score is evidence that has an error rate, told below for the sets
that it was measured on.
"""
LIMITS = """\
- **A score is no proof.** A low one does not show that a face is authentic, a high one not that it is
  forged. Nobody should be accused, banned or cleared on it alone.
- **Domain shift.** Error rates are those of the sets below. Forgeries of other methods, other cameras,
  stronger compression, resizing, screenshots, filters and make-up change them, mostly for the worse.
- **Faces only, cut by the recipe.** Crops must be cut as in training (`preprocess.json`: detector,
  template, margin); other crops take the detector towards chance. Whole pictures, bodies, backgrounds,
  voices and text are not looked at.
- **Groups of people.** Unless a table below says so, error rates were not measured by age, sex or skin
  colour, and may differ.
- **Attacks.** Pictures made to fool it will: it was not hardened against adversarial noise.
- **The threshold** is fitted to one validation set: another mix of sources wants its own.
"""


def _data(request: Request, facts: Trained) -> str:
    if request.opened.folder is None:
        return "That of the published file; its authors tell what it is."
    rows = [_set_row(each) for each in facts.sets]
    heads = ("split", "set", "dataset", "samples", "real", "fake", "methods", "fingerprint (index SHA-256)")
    told = [_table(heads, rows), _cut(request)]
    if facts.fingerprint:
        told.append(f"Fingerprint of the training data and its order: `{facts.fingerprint}`.")
    return "\n\n".join(told)


def _set_row(each: TrainedSet) -> tuple[object, ...]:
    if (manifest := each.manifest) is None:
        return each.split, each.name, "could not be read at the export", "", "", "", "", ""
    methods = ", ".join(f"{name} {count:,}" for name, count in sorted(manifest.by_method.items()))
    labels = (f"{manifest.by_label.get(label, 0):,}" for label in ("real", "fake"))
    digest = f"`{manifest.index.sha256[:16]}`"
    return each.split, each.name, manifest.dataset, f"{manifest.samples:,}", *labels, methods, digest


def _cut(request: Request) -> str:
    crop = request.opened.crop.model_dump(exclude_none=True)
    told = ", ".join(f"{name} {value}" for name, value in crop.items()) or "unknown"
    return (
        f"Faces were cut by this recipe: {told}; of that the model sees the middle, at"
        f" `data.crop_scale` {request.opened.config.data.crop_scale:g}."
    )


def _recipe(request: Request, facts: Trained) -> str:
    fields = leaves(records.portable(request.opened.config).model_dump(mode="json"))
    rows = [(f"`{path}`", json.dumps(value)) for path, value in fields.items() if path.startswith(RECIPE)]
    told = [_table(("field", "value"), rows), "All fields are in `config.json`."]
    if facts.step is not None:
        ended = (
            "chosen by the run that ended"
            if facts.finished
            else "of a run that did not choose it, or did not end"
        )
        told.append(f"This is the checkpoint of step {facts.step:,}, {ended}.")
    return "\n\n".join(told)


def _measured(request: Request, facts: Trained) -> str:
    parts = []
    if request.evaluated:
        parts += ["From an evaluation of these weights; intervals of 95 % where there are any:"]
        parts += [_metrics(request.evaluated["metrics"])]
    if facts.metrics:
        when = "the end of the run" if facts.finished else "this step of the run"
        parts += [f"From {when}; intervals come with an evaluation (`ray_jobs/evaluate.py`):"]
        parts += [_metrics(facts.metrics)]
    return "\n\n".join(parts) or "Nothing: evaluate it (`ray_jobs/evaluate.py`) before it is used."


def _metrics(metrics: dict[str, Any]) -> str:
    """A row for each split, set and level; further rows for methods and corruptions."""
    rows: dict[str, dict[str, str]] = {}
    more: list[tuple[str, str]] = []
    for name in metrics:
        parts = name.split("/")
        if len(parts) < 4 or name.endswith(("_low", "_high")):
            continue
        if len(parts) == 4 and parts[3] in METRICS:
            rows.setdefault("/".join(parts[:3]), {})[parts[3]] = _interval(metrics, name)
        elif parts[3].startswith("auroc@") or (parts[3] == "auroc" and parts[2] == "video"):
            more.append((f"`{name}`", _interval(metrics, name)))
    table = [(f"`{row}`", *(found.get(key, "-") for key in METRICS)) for row, found in rows.items()]
    told = [_table(("set and level", *METRICS.values()), table)]
    if more:
        told.append(_table(("by method and corruption", "AUROC"), more))
    return "\n\n".join(told)


def _interval(metrics: dict[str, Any], name: str) -> str:
    value, low, high = (metrics.get(name + end) for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    bounds = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{value:.{PLACES}f}{bounds}"


def _threshold(request: Request) -> str:
    fitted = request.threshold
    if fitted is None:
        return "None: this bundle gives scores without a verdict. Fit one on faces of your own."
    return (
        f"A score of {fitted.threshold:.6f} or more says fake. It lies at the equal error rate"
        f" ({100 * fitted.eer:.2f} %) of {fitted.level}s of the validation set {fitted.set_name}"
        f" ({fitted.frames:,} frames, fingerprint `{fitted.set_fingerprint[:16]}`); a video's score is the"
        f" {fitted.aggregate} of its frames'. A calibrated probability of a frame is"
        f" sigmoid(logit / {fitted.temperature:.4f})."
    )


def _precision(parity: dict[str, Any]) -> str:
    synthetic = parity["set_fingerprint"] is None
    what = "synthetic crops (no validation set could be read)" if synthetic else f"crops of {parity['set']}"
    heads = (
        "file",
        "precision",
        "largest score change",
        "largest logit change",
        "same ranking",
        "AUROC",
        "change",
    )
    rows = [_precision_row(f"`{name}`", entry) for name, entry in parity["files"].items()]
    rows.append(_precision_row("the checkpoint as it was evaluated", parity["checkpoint"]))
    forced = [name for name, entry in parity["files"].items() if entry["forced"]]
    told = [f"On {parity['crops']:,} {what}, against the float32 model:", _table(heads, rows)]
    if forced:
        told.append(
            f"**Forced**: {', '.join(forced)} cost more than the bound of {parity['bound']:g}, and were"
            " written all the same."
        )
    return "\n\n".join(told)


def _precision_row(name: str, entry: dict[str, Any]) -> tuple[object, ...]:
    auroc, change = entry["auroc"], entry["auroc_change"]
    return (
        name,
        entry["precision"],
        f"{entry['max_score_difference']:.2g}",
        f"{entry['max_logit_difference']:.2g}",
        "yes" if entry["same_ranking"] else "no",
        "-" if auroc is None else f"{auroc:.{PLACES}f}",
        "-" if change is None else f"{change:+.5f}",
    )


def _use(request: Request) -> str:
    detector, backbone = request.opened.detector, request.opened.config.model.backbone
    return USAGE + (OPEN_CLIP.format(backbone=backbone) if hugging_face.is_clip(detector) else "")


def _versions(facts: Trained) -> str:
    exported = ", ".join(f"{name} {version}" for name, version in records.exporters().items())
    trained_with = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"Exported with {exported}." + (f"\n\nTrained with {trained_with}." if trained_with else "")


USAGE = """\
A crop to a score with onnxruntime, NumPy and Pillow alone (`example.py` has the cut and the verdict):

```sh
python example.py crop.png
```

The graphs `model.onnx` and `model.pt2` take `crops`, uint8 `[N, H, W, 3]` RGB, square and cut as
`preprocess.json` tells, of any one size; they resize and normalise within, and give `score` (fake
probability) and `logit` (fake minus real), float32 `[N]`. A video's score is the mean over its frames.
"""
OPEN_CLIP = """
The tower's weights are open_clip's own:

```python
import open_clip
from safetensors.torch import load_file

tensors = load_file("model.safetensors")
visual = open_clip.create_model("{backbone}").visual
visual.proj = None  # features are taken before the projection to text
visual.load_state_dict(
    {{k.removeprefix("tower.visual."): v for k, v in tensors.items() if k.startswith("tower.visual.")}}
)
```
"""
CHECKSUMS = """\
`SHA256SUMS` is over every file: `sha256sum --check SHA256SUMS`, or `python -m dfdet.export FOLDER`, which
also loads the graphs. `bundle.json` has sizes and versions.
"""


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
