"""What a user may name: a file, a folder as Hugging Face saves them, or ``hf:OWNER/NAME[@REVISION]``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfdet.errors import ConfigError, WeightsError
from dfdet.published import hub

HF = "hf:"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_ID = re.compile(r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_GEND_FIELDS = ("backbone", "head")


@dataclass(frozen=True)
class Files:
    """The files of a source."""

    weights: Path
    """The tensors."""
    config: dict[str, Any]
    """The ``config.json`` beside them; empty where there is none."""


def is_published(source: str) -> bool:
    """Whether a source is for this room: an ``hf:`` id, a file, or a folder in Hugging Face's form."""
    path = Path(source)
    return source.startswith(HF) or path.is_file() or _is_their_folder(path)


def locate(source: str) -> Files:
    """The files of a source; those of an id are downloaded, or come from the cache.

    Raises:
        ConfigError: No such file or folder, or an id of another form.
        WeightsError: A ``config.json`` that is none, or a download that failed.
    """
    path = Path(source)
    if source.startswith(HF):
        return _from_hub(source)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return Files(path / WEIGHTS, _read_config(path / CONFIG))
    if not path.is_file():
        raise ConfigError(
            f"{source}: no such file, nor a folder with {WEIGHTS}; give one of these or hf:OWNER/NAME"
        )
    beside = path.with_name(CONFIG) if path.name == WEIGHTS else None
    return Files(path, _read_config(beside) if beside and beside.is_file() else {})


def _is_their_folder(path: Path) -> bool:
    """Our own folders have a ``config.json`` too, with a section ``run``."""
    if not (path / WEIGHTS).is_file() or not (path / CONFIG).is_file():
        return False
    try:
        return "run" not in _read_config(path / CONFIG)
    except WeightsError:
        return False


def _from_hub(source: str) -> Files:
    match = _ID.fullmatch(source)
    if match is None:
        raise ConfigError(f"{source}: not of the form hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    config = _read_config(hub.download(match["repository"], CONFIG, match["revision"]))
    if not all(isinstance(config.get(field), str) for field in _GEND_FIELDS):  # before a gigabyte comes
        raise WeightsError(
            f"{source}: its {CONFIG} (model_type {config.get('model_type')!r}) names no backbone and head, so"
            " it is no detector that is known here; for a tower download its weights and set"
            " --model.pretrained to the file"
        )
    return Files(hub.download(match["repository"], WEIGHTS, match["revision"]), config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: holds {type(config).__name__}, not an object; get the file again")
    return config
