"""Checks of a search space before anything starts: every value is one that its field and a run take."""

from __future__ import annotations

import math
import random
from typing import Any, NoReturn

from dfdet.config import Config, leaves
from dfdet.errors import ConfigError
from dfdet.sweep.space.fields import DEFAULTS, checked, path_problem, unknown
from dfdet.sweep.space.space import Dimension, Space, Value

RANDOM_SETTINGS = 200
"""Settings that are tried for contradictions, besides the ends of each dimension."""


def check_space(space: Space, base: Config, widest_crop: float = math.inf) -> None:
    """Refuses a space that has a setting which is no valid config, as far as ends and samples show it.

    Args:
        space: To be checked.
        base: The config that settings are applied to.
        widest_crop: Largest crop scale that the sets hold.

    Raises:
        ConfigError: One line with the dimension, the cause and the remedy.
    """
    if not space.dimensions:
        raise ConfigError("sweep space: empty; give a dimension, as loss.uniformity: {low: 0, high: 1}")
    for path, dimension in space.dimensions.items():
        problem = path_problem(path) or _form_problem(dimension) or _type_problem(path, dimension)
        if problem:
            _refuse(path, problem)
        for value in dimension.ends:
            _check_value(path, path, value)
    _check_crops(space, widest_crop)
    _check_conditions(space)
    _check_ends(space, base)
    _check_random_settings(space, base)


def _refuse(path: str, problem: str) -> NoReturn:
    raise ConfigError(f"sweep space, {path}: {problem}")


# One dimension --------------------------------------------------------------------------------------


def _form_problem(dimension: Dimension) -> str | None:
    """What is wrong with a dimension whatever its field."""
    if dimension.choices is not None:
        return _choices_problem(dimension, dimension.choices)
    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        return "neither range nor choices; give low and high, or choices"
    if low >= high:
        return f"low={low:g} is not below high={high:g}; swap them, or set a single value in the config"
    if dimension.log and low <= 0:
        return f"low={low:g} has no logarithm; raise low above 0, or set log: false"
    if dimension.integer and not all(number.is_integer() for number in (low, high, step or 1.0)):
        return "integer: true, but low, high or step is no whole number; round it"
    return None if step is None else _step_problem(dimension, low, high, step)


def _choices_problem(dimension: Dimension, choices: tuple[Value, ...]) -> str | None:
    numeric = [name for name in ("low", "high", "step") if getattr(dimension, name) is not None]
    numeric += [name for name in ("log", "integer") if getattr(dimension, name)]
    if numeric:
        return f"choices and {numeric[0]} contradict each other; give either choices or a range"
    if not choices:
        return "choices is empty; give the values to choose from"
    repeated = [choice for k, choice in enumerate(choices) if choice in choices[:k]]
    return f"the choice {repeated[0]!r} is given twice; give it once" if repeated else None


def _step_problem(dimension: Dimension, low: float, high: float, step: float) -> str | None:
    if dimension.log:
        return f"step={step:g} does not go with log; drop one of the two"
    if not 0 < step <= high - low:
        return f"step={step:g} is not between 0 and high - low = {high - low:g}; choose a smaller one"
    if not dimension.holds(high):
        last = dimension.nth((dimension.count or 1) - 1)
        return f"steps of {step:g} from {low:g} miss high={high:g}; set high: {last:g} or another step"
    return None


def _type_problem(path: str, dimension: Dimension) -> str | None:
    """A range where the field holds no numbers, or fractions where it holds whole ones."""
    if dimension.choices is not None:
        return None
    default = DEFAULTS[path]
    if isinstance(default, bool):
        return "is on or off, not a range; write choices, as [true, false]"
    if not isinstance(default, int | float):
        return "holds no numbers, so it has no range; write choices, as [a, b]"
    if isinstance(default, int) and not dimension.integer:
        return "holds whole numbers; add integer: true"
    return None


def _check_value(path: str, field: str, value: Value) -> None:
    """Refuses a value that its field does not take; ``path`` is the dimension that names it."""
    try:
        held = checked(field, value)
    except ConfigError as error:
        _refuse(path, f"{error}; change that value")
    if any(isinstance(value, kind) != isinstance(held, kind) for kind in (bool, str)):
        _refuse(path, f"{field}={value!r}: the field would read it as {held!r}; write {held!r}")


def _check_crops(space: Space, widest: float) -> None:
    path = "data.crop_scale"
    for value in space.dimensions[path].ends if path in space.dimensions else ():
        if float(value) > widest + 1e-9:
            _refuse(path, f"{value:g} is wider than the crops of the sets, {widest:g}; end it there")


# All together ---------------------------------------------------------------------------------------


def _check_conditions(space: Space) -> None:
    earlier: set[str] = set()
    for path, dimension in space.dimensions.items():
        for name, allowed in dimension.when.items():
            if name not in DEFAULTS:
                _refuse(path, f"its condition names {name}: {unknown(name)}")
            if name == path:
                _refuse(path, "its condition names itself; name another field")
            if name in space.dimensions and name not in earlier:
                _refuse(path, f"its condition names {name}, which comes later; list {name} before {path}")
            for value in allowed:
                _check_value(path, name, value)
        earlier.add(path)


def _check_ends(space: Space, base: Config) -> None:
    """Every end and choice, with the other fields as the base has them, or near it."""
    possible = space.resolved(base).dimensions
    resting = leaves(base.model_dump())
    resting |= {
        path: dimension.ends[0]
        for path, dimension in space.dimensions.items()
        if not dimension.holds(resting[path])
    }
    for path, dimension in space.dimensions.items():
        for value in dimension.ends:
            wanted = resting | _enabling(space, path, resting) | {path: value}
            setting = space.setting(lambda name, _, wanted=wanted: wanted[name], base)  # type: ignore[misc]
            if path not in possible or path not in setting:
                _refuse(
                    path, f"never exists, as {dimension.conditions()} never holds; drop it, or its `when`"
                )
            _check_setting(setting, base, path)


def _enabling(space: Space, path: str, resting: dict[str, Any]) -> dict[str, Any]:
    """Values of other dimensions under which one exists."""
    wanted: dict[str, Any] = {}
    for name, allowed in space.dimensions[path].when.items():
        parent = space.dimensions.get(name)
        if parent is None:
            continue
        wanted |= _enabling(space, name, resting)
        if resting[name] not in allowed:
            wanted[name] = next((value for value in allowed if parent.holds(value)), resting[name])
    return wanted


def _check_random_settings(space: Space, base: Config) -> None:
    rng = random.Random(0)  # noqa: S311 - no secret
    for _ in range(RANDOM_SETTINGS):
        _check_setting(space.setting(lambda _, dimension: dimension.draw(rng), base), base)


def _check_setting(setting: dict[str, Any], base: Config, path: str | None = None) -> None:
    """Refuses a setting that no run takes, showing those of its values that the problem is about."""
    try:
        base.replace(setting)
    except ConfigError as error:
        problem = str(error)
        shown = {name: value for name, value in setting.items() if name == path or name in problem}
        values = ", ".join(f"{name}={value}" for name, value in (shown or setting).items())
        raise ConfigError(
            f"sweep space: it holds a setting that no run takes, {values} ({problem}); narrow the ranges or"
            " change the base config so that all settings are valid"
        ) from error
