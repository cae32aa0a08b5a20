"""Reads a search space from YAML, which narrows the default space or replaces it.

::

    replace: false                          # true: only what is listed here is searched
    dimensions:
      loss.uniformity: {low: 0.1, high: 1.0, log: true}
      optim.lr: {high: 1e-3}                # what is not said stays as the default space has it
      model.head: [linear, cosine]          # choices
      model.scale: {choices: [16, 32], when: {model.head: cosine}}
      optim.warmup_epochs: null             # not searched
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dfdet.config import Config, explain
from dfdet.errors import ConfigError
from dfdet.sweep.space.fields import DEFAULTS, checked
from dfdet.sweep.space.space import Dimension, Space

RANGE_KEYS = {"low", "high", "log", "step", "integer"}


def read_space(path: Path, default: Space, base: Config) -> Space:
    """The space that a YAML file asks for.

    Dimensions are put in an order in which conditions name earlier ones. Those of the default space
    that exist no longer (a margin where only the linear head is left) go; conditions that always hold
    go too. Whether the file's own dimensions suit their fields is for ``check_space`` to say.

    Args:
        path: Of the file.
        default: The space that is narrowed.
        base: The sweep's base config.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or has an entry of another form.
    """
    try:
        replace, entries = _parsed(path)
        dimensions = {} if replace else dict(default.dimensions)
        for name, entry in entries.items():
            if entry is None:
                _drop(name, dimensions)
            else:
                dimensions[name] = _dimension(name, entry, dimensions.get(name))
    except ConfigError as error:
        raise ConfigError(f"--space {path}: {error}") from error
    return Space(dimensions=_ordered(dimensions)).resolved(base, keep=entries)


def _parsed(path: Path) -> tuple[bool, dict[str, Any]]:
    """``replace`` and the entries by dotted path."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"no YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("dimensions"), dict):
        raise ConfigError("no mapping `dimensions`; write dimensions: {loss.uniformity: {low: 0, high: 1}}")
    if unknown := tree.keys() - {"replace", "dimensions"}:
        raise ConfigError(f"unknown key {min(map(str, unknown))!r}; there are replace and dimensions")
    replace = tree.get("replace", False)
    if not isinstance(replace, bool):
        raise ConfigError(f"replace={replace!r}: neither true nor false; write one of them")
    return replace, {str(name): entry for name, entry in tree["dimensions"].items()}


def _drop(name: str, dimensions: dict[str, Dimension]) -> None:
    if dimensions.pop(name, None) is None:
        there = ", ".join(dimensions) or "nothing, as replace is true"
        raise ConfigError(f"{name}: null drops a dimension, and this one is not there; there is {there}")


def _dimension(name: str, entry: Any, old: Dimension | None) -> Dimension:
    spec = {"choices": entry} if isinstance(entry, list) else entry
    if not isinstance(spec, dict):
        raise ConfigError(f"{name}={entry!r}: no dimension; write {{low: 0, high: 1}}, [a, b], or null")
    if unknown := spec.keys() - Dimension.model_fields.keys():
        keys = ", ".join(Dimension.model_fields)
        raise ConfigError(f"{name}: unknown key {min(map(str, unknown))!r}; there are {keys}")
    spec = _typed(name, _kept(old, spec) | spec)
    try:
        return Dimension.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(f"{explain(error, name)}; correct it") from error


def _kept(old: Dimension | None, spec: dict[str, Any]) -> dict[str, Any]:
    """What of the default's dimension an entry leaves as it is."""
    if old is None:
        return {}
    replaced = {"choices"} if spec.keys() & RANGE_KEYS else set()
    if "choices" in spec:
        replaced = RANGE_KEYS
    return {key: value for key, value in old.model_dump().items() if key not in replaced}


def _typed(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Values as their fields hold them: YAML reads 1e-4 as text, and 0 as an integer."""
    typed = dict(spec)
    if isinstance(spec.get("choices"), list | tuple):
        typed["choices"] = [_as_held(name, value) for value in spec["choices"]]
    elif type(DEFAULTS.get(name)) is int:
        typed.setdefault("integer", True)
    if isinstance(spec.get("when"), dict):
        typed["when"] = {
            str(path): [_as_held(str(path), value) for value in _listed(allowed)]
            for path, allowed in spec["when"].items()
        }
    return typed


def _as_held(path: str, value: Any) -> Any:
    """The field's own form of a value; a value that it does not take stays, for the checks to name."""
    if path not in DEFAULTS or (isinstance(value, bool) and not isinstance(DEFAULTS[path], bool)):
        return value
    try:
        return checked(path, value)
    except ConfigError:
        return value


def _listed(allowed: Any) -> list[Any]:
    return list(allowed) if isinstance(allowed, list | tuple) else [allowed]


def _ordered(dimensions: dict[str, Dimension]) -> dict[str, Dimension]:
    """The dimensions, each after those that its condition names; circles stay for the checks."""
    ordered: dict[str, Dimension] = {}
    entered: set[str] = set()

    def place(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        for parent in dimensions[name].when:
            if parent in dimensions:
                place(parent)
        ordered[name] = dimensions[name]

    for name in dimensions:
        place(name)
    return ordered
