"""What the config tree says of a dotted path: whether a sweep may search it, and which values it takes.

Nothing here is a copy of a range: a value is checked by the field itself.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from dfdet.config import Config, Section, explain, leaves
from dfdet.errors import ConfigError

DEFAULTS: dict[str, Any] = leaves(Config().model_dump())
"""Every config field's default by its dotted path."""

_BUDGET = "settings are compared at an equal budget; set it for all of them, as with --{path}"
_PLACE = "it says where and how a setting is trained, not what it learns; set it for all, as with --{path}"
_SPEED = "it changes speed and memory, not what is learned; set it for all, as with --{path}"
_SETS = "settings trained or measured on different sets cannot be compared; set it for all, as with --{path}"
_READING = "it changes how samples are read, not what is learned; set it for all, as with --{path}"

REFUSED: dict[str, str] = {
    "run.seed": "the best of several seeds is luck, not a setting; score every setting by --seeds",
    "run": _PLACE,
    "data.train": _SETS,
    "data.val": _SETS,
    "data.test": _SETS,
    "data.mix_crops": _READING,
    "data.on_damage": _READING,
    "data.max_damaged": _READING,
    "data.threads": _READING,
    "data.prefetch": _READING,
    "data.cache_dir": _READING,
    "data.cache_gib": _READING,
    "data.retries": _READING,
    "optim.epochs": _BUDGET,
    "optim.patience": _BUDGET,
    "engine.precision": "",
    "engine": _SPEED,
    "eval.every_epochs": "settings are compared at the same epochs; set it for all, as with --{path}",
    "eval": _SPEED,
}
"""Why a field, or a whole section, is not searched; the first entry that a path falls under counts, and
an empty reason allows it."""


def path_problem(path: str) -> str | None:
    """Why a path cannot be a dimension of a sweep, with the remedy; None where it can."""
    if path not in DEFAULTS:
        return unknown(path)
    reason = next((why for name, why in REFUSED.items() if path == name or path.startswith(f"{name}.")), "")
    if reason:
        return f"not searched, since {reason.format(path=path)}"
    if isinstance(DEFAULTS[path], tuple):
        return f"holds several values, a dimension one; set it for all settings, as with --{path}"
    return None


def unknown(path: str) -> str:
    """What to say of a path that is no field."""
    inside = [name for name in DEFAULTS if name.startswith(f"{path}.")]
    if inside:
        return f"a section, not a field; name a field of it, as {inside[0]}"
    near = difflib.get_close_matches(path, DEFAULTS, n=1)
    if not near:  # perhaps without its section
        ends = {name.rpartition(".")[2]: name for name in DEFAULTS}
        near = [ends[end] for end in difflib.get_close_matches(path.rpartition(".")[2], ends, n=1)]
    return "no such field; " + (f"did you mean {near[0]}?" if near else "see train.py --help for all fields")


def checked(path: str, value: Any) -> Any:
    """A value as its field holds it, so 1 as 1.0 where the field is a float.

    Raises:
        ConfigError: The field does not take the value; one line with the cause.
    """
    *parents, leaf = path.split(".")
    section: type[Section] = Config
    for name in parents:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    try:
        return getattr(section.model_validate({leaf: value}), leaf)
    except ValidationError as error:
        raise ConfigError(explain(error, ".".join(parents))) from error
