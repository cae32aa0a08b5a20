"""The JSON files of a bundle."""

from __future__ import annotations

from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from dfdet.config import Config, Data, named_sets
from dfdet.model.preprocess import Preprocess
from dfdet.runs.result import versions
from dfdet.schema import CropRecipe

FORMAT_VERSION = 1
KIND = "dfdet-detector"
EXPORTERS = ("onnx", "onnxscript", "onnxruntime", "safetensors", "open_clip_torch")
TRAINERS = ("ray", "deepspeed")


def preprocess(crop: CropRecipe, crop_scale: float, model: Preprocess) -> dict[str, Any]:
    """``preprocess.json``: how a face becomes the graph's input, and what the graph does with it."""
    return {
        "format_version": FORMAT_VERSION,
        "crop": crop.model_dump(mode="json"),
        "crop_scale": crop_scale,
        "input": {"name": "crops", "dtype": "uint8", "layout": "NHWC", "colour": "RGB"},
        "image_size": model.image_size,
        "mean": list(model.mean),
        "std": list(model.std),
        "interpolation": model.interpolation,
        "resize": "antialiased",
    }


def portable(config: Config) -> Config:
    """The config without the paths of the machine that trained: names of files are kept."""
    data = config.data

    def named(entries: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{name}={_base(path)}" for name, path in named_sets(entries).items())

    return config.replace(
        {
            "run.storage": "runs",
            "data.train": tuple(map(_base, data.train)),
            "data.val": named(data.val),
            "data.test": named(data.test),
            "data.cache_dir": Data().cache_dir,
            "model.pretrained": pretrained_name(config),
        }
    )


def pretrained_name(config: Config) -> str | None:
    """A tag as it is, of a file its name."""
    return _base(config.model.pretrained) if config.model.pretrained else None


def _base(path: str) -> str:
    return PurePosixPath(path).name


def exporters() -> dict[str, str]:
    """Versions of what wrote the bundle."""
    found = {name: version for name, version in versions().items() if name not in TRAINERS}
    return found | {package: metadata.version(package) for package in EXPORTERS}


def bundle(
    name: str, fingerprint: str, files: dict[str, dict[str, Any]], notes: tuple[str, ...]
) -> dict[str, Any]:
    """``bundle.json``."""
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "fingerprint": fingerprint,
        "kind": KIND,
        "files": files,
        "versions": exporters(),
        "notes": list(notes),
    }
