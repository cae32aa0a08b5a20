"""What a sweep searches: config fields by their dotted paths, each with a range or choices.

A *setting* is a value for each searched field that exists under it. It is also a set of arguments to
:meth:`Config.replace <dfdet.config.Config.replace>`, and in Optuna's study the parameters of a trial
carry the same dotted names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from dfdet.config import Config, Section, leaves
from dfdet.errors import ConfigError
from dfdet.sweep.space.dimension import Dimension, Value
from dfdet.sweep.space.fields import DEFAULTS, unknown

__all__ = ["Dimension", "Space", "Value"]


class Space(Section):
    """The dimensions of a sweep; a condition names config fields or earlier dimensions.

    A dimension whose condition fails is *dormant*: its field keeps the base config's value. Where that
    value contradicts the setting, as a margin of .2 under a linear head that the sweep has chosen, the
    field goes back to the config tree's default, which then is part of the setting. As few fields as
    possible do so.
    """

    dimensions: dict[str, Dimension]
    """Dotted path to its values."""

    def suggest(self, trial: BaseTrial, base: Config) -> dict[str, Any]:
        """A trial's setting, as ``{"loss.uniformity": 0.3, "model.head": "linear", "model.margin": 0.0}``."""
        return self.setting(lambda path, dimension: dimension.suggest(trial, path), base)

    def setting(self, pick: Callable[[str, Dimension], Any], base: Config) -> dict[str, Any]:
        """The setting whose dimensions, as far as they exist, get the values that ``pick`` gives.

        :meth:`Config.replace <dfdet.config.Config.replace>` refuses it where no reset of dormant fields
        makes it valid.
        """
        return self._with_resets(self._picked(pick, base), base)

    def distributions(self) -> dict[str, BaseDistribution]:
        """All dimensions, conditions left out, as Optuna describes them."""
        return {path: dimension.distribution() for path, dimension in self.dimensions.items()}

    @property
    def conditional(self) -> bool:
        """Whether some settings lack a dimension."""
        return any(dimension.when for dimension in self.dimensions.values())

    @property
    def finite(self) -> bool:
        """Whether there are finitely many settings."""
        return self.size is not None

    @property
    def size(self) -> int | None:
        """How many combinations of values there are, conditions left out; None: not finitely many."""
        counts = [dimension.count for dimension in self.dimensions.values()]
        return math.prod(count for count in counts if count is not None) if None not in counts else None

    def grid(self) -> dict[str, list[Value]]:
        """All values of each dimension of a finite space."""
        return {path: dimension.grid() for path, dimension in self.dimensions.items()}

    def fits(self, values: dict[str, Any], base: Config) -> dict[str, Any] | str:
        """A known setting as a trial's parameters, or why no trial of this space can be it.

        Args:
            values: By dotted path; what it does not name stays as the base has it. Values of dormant
                dimensions are passed over.
            base: The sweep's base config.
        """
        own = leaves(base.model_dump())
        for path in [path for path in values if path not in self.dimensions]:
            if path not in own:
                return f"{path}: {unknown(path)}"
            if values[path] != own[path]:
                return f"{path}={values[path]}: not searched, and the base config has {own[path]}"
        picked = self._picked(lambda path, _: values.get(path, own[path]), base)
        for path, value in picked.items():
            if not self.dimensions[path].holds(value):
                return f"{path}={value}: not among the searched values, {self.dimensions[path].describe()}"
        try:
            base.replace(self._with_resets(picked, base))
        except ConfigError as error:
            return str(error)
        return picked

    def resolved(self, base: Config, keep: Collection[str] = ()) -> Space:
        """The same space without conditions that always hold and dimensions that never exist.

        Either follows from fields that the space does not search, or from narrowed choices. A condition
        on an unknown field or a later dimension stays, for ``check_space`` to refuse, and so do the
        dimensions that are to be kept.
        """
        own = leaves(base.model_dump())
        paths = list(self.dimensions)
        kept: dict[str, Dimension] = {}
        for position, (path, dimension) in enumerate(self.dimensions.items()):
            verdicts = {
                name: _verdict(allowed, kept.get(name), own[name])
                for name, allowed in dimension.when.items()
                if name in own and name not in paths[position:]
            }
            if False in verdicts.values() and path not in keep:
                continue
            when = {name: allowed for name, allowed in dimension.when.items() if not verdicts.get(name)}
            kept[path] = dimension.model_copy(update={"when": when})
        return Space(dimensions=kept)

    def _picked(self, pick: Callable[[str, Dimension], Any], base: Config) -> dict[str, Any]:
        fields = leaves(base.model_dump())
        picked: dict[str, Any] = {}
        for path, dimension in self.dimensions.items():
            if dimension.exists(fields):
                fields[path] = picked[path] = pick(path, dimension)
        return picked

    def _with_resets(self, values: dict[str, Any], base: Config) -> dict[str, Any]:
        if _valid(base, values):
            return values
        resets = {path: DEFAULTS[path] for path in self.dimensions if path not in values}
        if not _valid(base, values | resets):
            return values
        for path in list(resets):
            fewer = {name: value for name, value in resets.items() if name != path}
            if _valid(base, values | fewer):
                resets = fewer
        return values | resets


def _valid(base: Config, values: dict[str, Any]) -> bool:
    try:
        base.replace(values)
    except ConfigError:
        return False
    return True


def _verdict(allowed: tuple[Value, ...], parent: Dimension | None, own: Any) -> bool | None:
    """Whether a condition holds under all settings (True), none (False), or some (None)."""
    if parent is None:
        return own in allowed
    dormant = [own] if parent.when else []
    if not any(parent.holds(value) or value in dormant for value in allowed):
        return False
    known = parent.count is not None and parent.count <= len(allowed)
    return True if known and all(value in allowed for value in [*parent.grid(), *dormant]) else None
