"""One dimension of a sweep: the values that a config field may take, and when it exists."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic import Field

from dfdet.config import Section

Value = bool | int | float | str


class Dimension(Section):
    """The values that one config field may take: a range of numbers, or choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value, itself included."""
    log: bool = False
    """Search the logarithm."""
    step: float | None = None
    """Distance of neighbouring values, counted from `low`; None: any value, or 1 where `integer`."""
    integer: bool = False
    """Whole numbers only."""
    choices: tuple[Value, ...] | None = None
    """The values themselves, in place of a range."""
    when: dict[str, tuple[Value, ...]] = Field({})
    """Dotted path to values: the dimension exists where each of these fields has one of its values."""

    @property
    def range(self) -> tuple[float, float]:
        """Both ends of a dimension that has no choices."""
        assert self.low is not None and self.high is not None, "choices, or not checked"
        return self.low, self.high

    @property
    def ends(self) -> tuple[Value, ...]:
        """Its extreme values: both ends, or all choices."""
        if self.choices is not None:
            return self.choices
        low, high = self.range
        return (int(low), int(high)) if self.integer else (low, high)

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are not finitely many."""
        if self.choices is not None:
            return len(self.choices)
        step = self.step or (1.0 if self.integer else None)
        low, high = self.range
        return None if step is None else math.floor((high - low) / step + 1e-8) + 1

    def nth(self, k: int) -> Value:
        """Value number ``k`` of finitely many, from 0; decimal steps give decimal numbers: .3, not .1 * 3."""
        if self.choices is not None:
            return self.choices[k]
        value = Decimal(str(self.range[0])) + k * Decimal(str(self.step or 1.0))
        return int(value) if self.integer else float(value)

    def grid(self) -> list[Value]:
        """All values in order, if finitely many."""
        assert self.count is not None, "not finite"
        return [self.nth(k) for k in range(self.count)]

    def holds(self, value: Any) -> bool:
        """Whether it may take a value."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.range
        step = self.step or (1.0 if self.integer else None)
        steps = 0.0 if step is None else (value - low) / step
        return low <= value <= high and abs(steps - round(steps)) < 1e-8

    def exists(self, values: dict[str, Any]) -> bool:
        """Whether its conditions hold under these fields."""
        return all(values.get(path) in allowed for path, allowed in self.when.items())

    def distribution(self) -> BaseDistribution:
        """The dimension as Optuna describes it."""
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        low, high = self.range
        if self.integer:
            return IntDistribution(int(low), int(high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=self.log, step=self.step)

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """A trial's value of the dimension."""
        if self.choices is not None:
            choice: Value = trial.suggest_categorical(name, self.choices)  # type: ignore[assignment]
            return choice
        low, high = self.range
        if self.integer:
            return trial.suggest_int(name, int(low), int(high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, low, high, step=self.step, log=self.log)

    def draw(self, rng: random.Random) -> Value:
        """A random value."""
        if self.count is not None:
            return self.nth(rng.randrange(self.count))
        low, high = self.range
        if self.log:
            return min(high, max(low, math.exp(rng.uniform(math.log(low), math.log(high)))))
        return rng.uniform(low, high)

    def describe(self) -> str:
        """The values in words, as ``0.001 to 0.1 (log)``."""
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        low, high = self.ends
        step = f"step {self.step:g}" if self.step else ""
        notes = [note for note in ("log" * self.log, "integer" * self.integer, step) if note]
        return f"{low:g} to {high:g}" + (f" ({', '.join(notes)})" if notes else "")

    def conditions(self) -> str:
        """The conditions in words, as ``model.head in [cosine, angular]``."""
        return " and ".join(f"{path} in [{', '.join(map(str, some))}]" for path, some in self.when.items())
