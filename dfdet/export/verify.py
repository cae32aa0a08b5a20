"""Looks a bundle over: checksums, the contract's files, graphs that load and score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dfdet.errors import InputError
from dfdet.evaluation import threshold
from dfdet.export import crops, records, triton
from dfdet.export.onnx_scorer import OnnxScorer
from dfdet.export.staging import SUMS, files_of, read_sums, sha256
from dfdet.schema import CropRecipe

NEEDED = frozenset({"bundle.json", "config.json", "parity.json", "preprocess.json"}) | {
    f"model.{kind}" for kind in ("onnx", "pt2", "safetensors")
}
REMEDY = "copy the bundle again, or export anew"


def verify(bundle: Path) -> list[str]:
    """Checks a bundle; gives lines on what was found.

    Raises:
        InputError: It is no bundle, a file was changed, is missing or too many, or a graph gives no scores.
    """
    about, recipe = _read(bundle, "bundle.json"), _read(bundle, "preprocess.json")
    for tree, name in ((about, "bundle.json"), (recipe, "preprocess.json")):
        if tree.get("format_version") != records.FORMAT_VERSION:
            raise InputError(
                f"{bundle / name}: format version {tree.get('format_version')}, not"
                f" {records.FORMAT_VERSION}; use the dfdet that wrote it"
            )
    files = _check_sums(bundle, about)
    if (bundle / "threshold.json").exists():
        threshold.read(bundle / "threshold.json")
    graphs = sorted(path for path in files if path.startswith("model") and path.endswith(".onnx"))
    for name in graphs:
        _check_graph(bundle / name, recipe)
    for model in sorted((bundle / "triton").glob("*")):
        triton.check(model)
    return [
        f"{about['name']}: {len(files)} files, checksums agree",
        f"fingerprint {about['fingerprint']}",
        f"graphs that load and score: {', '.join(graphs)}",
    ]


def _read(bundle: Path, name: str) -> dict[str, Any]:
    try:
        tree = json.loads((bundle / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{bundle}: no bundle ({name}: {error}); give a folder that export wrote") from error
    if not isinstance(tree, dict):
        raise InputError(f"{bundle / name}: holds no JSON object; {REMEDY}")
    return tree


def _check_sums(bundle: Path, about: dict[str, Any]) -> list[str]:
    """Every file as it was written, none missing, none added; gives their names."""
    try:
        sums = read_sums(bundle)
    except (OSError, ValueError) as error:
        raise InputError(f"{bundle}: {error}; {REMEDY}") from error
    there = files_of(bundle)
    problems = [f"{name} is missing" for name in sorted({*sums, *NEEDED} - set(there))]
    problems += [f"{name} is not in {SUMS}" for name in there if name not in sums]
    problems += [
        f"{name} was changed" for name in there if name in sums and sha256(bundle / name) != sums[name]
    ]
    listed = {name: entry["sha256"] for name, entry in about["files"].items()}
    problems += [f"bundle.json and {SUMS} differ"] * (
        listed != {k: v for k, v in sums.items() if k in listed}
    )
    if problems:
        raise InputError(f"{bundle}: {problems[0]} ({len(problems)} problems); {REMEDY}")
    return there


def _check_graph(path: Path, recipe: dict[str, Any]) -> None:
    sample = crops.synthetic(CropRecipe.model_validate(recipe["crop"]), recipe["crop_scale"], 2)
    try:
        scores, logits = OnnxScorer(path)(np.stack(sample.images))
    except Exception as error:  # onnxruntime has its own for each kind of fault
        raise InputError(
            f"{path}: does not load or score ({str(error).splitlines()[0]}); {REMEDY}"
        ) from error
    sure = 1 / (1 + np.exp(-logits.astype(np.float64)))
    if not (scores.shape == logits.shape == (2,) and np.allclose(scores, sure, atol=1e-4)):
        raise InputError(f"{path}: its scores are not those of its logits; {REMEDY}")
