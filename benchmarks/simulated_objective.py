"""An analytic stand-in for training: validation AUROC by epoch over nine dimensions, with noise."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfdet.recipes import demo
from dfdet.sweep.space.space import Dimension, Space

EPOCHS = 10
BEST_LR, FINAL, CHANCE = 3e-3, 0.95, 0.5
SEED_NOISE, EVALUATION_NOISE = 0.004, 0.003
MARGIN_HEAD: dict[str, tuple[bool | int | float | str, ...]] = {"model.head": ("cosine", "angular")}
SPACE = Space(
    dimensions={
        "optim.lr": Dimension(low=1e-4, high=1e-1, log=True),
        "loss.uniformity": Dimension(low=0.0, high=1.0),
        "loss.alignment": Dimension(low=0.0, high=1.0),
        "loss.label_smoothing": Dimension(low=0.0, high=0.3),
        "data.crop_scale": Dimension(low=1.0, high=2.0),
        "data.augment.strength": Dimension(low=0.0, high=2.0),
        "model.head": Dimension(choices=("linear", "cosine", "angular")),
        "model.margin": Dimension(low=0.0, high=0.5, when=MARGIN_HEAD),
        "model.scale": Dimension(low=4.0, high=64.0, log=True, when=MARGIN_HEAD),
    }
)

BEST = {
    "loss.uniformity": 0.5,
    "loss.alignment": 0.1,
    "loss.label_smoothing": 0.05,
    "data.crop_scale": 1.4,
    "data.augment.strength": 1.0,
    "model.head": "cosine",
    "model.margin": 0.2,
    "model.scale": 16.0,
}
"""The best setting but for its learning rate."""


def asymptote(values: dict[str, Any]) -> float:
    """AUROC that a setting tends to; .95 at ``BEST``."""
    uniformity, alignment = values["loss.uniformity"], values["loss.alignment"]
    lost = 0.050 * math.log10(values["optim.lr"] / BEST_LR) ** 2
    lost += 0.030 * (2 * uniformity - 1) ** 2
    lost += 0.030 * (alignment - 0.1 - 0.4 * abs(uniformity - 0.5)) ** 2
    lost += 0.015 * (4 * (values["loss.label_smoothing"] - 0.05)) ** 2
    lost += 0.030 * (1.7 * (values["data.crop_scale"] - 1.4)) ** 2
    lost += 0.015 * (values["data.augment.strength"] - 1.0) ** 2
    if values["model.head"] == "linear":
        return FINAL - lost - 0.010
    best_margin, worse = (0.2, 0.0) if values["model.head"] == "cosine" else (0.3, 0.006)
    lost += worse + 0.040 * (3.3 * (values["model.margin"] - best_margin)) ** 2
    lost += 0.005 * math.log2(values["model.scale"] / 16) ** 2
    return FINAL - lost


@dataclass(frozen=True)
class Objective:
    """How settings learn."""

    name: str
    constant: float
    """Epochs in which the best learning rate gets to 63 % of what it will gain (epochs)."""
    exponent: float
    """Of the learning rate in that number: 0 where all settings learn equally fast."""

    def true_value(self, values: dict[str, Any], epoch: int) -> float:
        """AUROC after an epoch, without noise."""
        constant = min(6.0, max(0.5, self.constant * (BEST_LR / values["optim.lr"]) ** self.exponent))
        top = max(CHANCE, asymptote(values))
        return top - (top - CHANCE) * math.exp(-epoch / constant)

    def optimum(self) -> float:
        """The best true value at the last epoch; its rate is a little above the asymptote's best."""
        rates = np.geomspace(1e-4, 1e-1, 3001)
        return max(self.true_value({**BEST, "optim.lr": rate}, EPOCHS) for rate in rates)

    def correlations(self) -> list[float]:
        """Rank correlation of 1000 random settings' scores after 1, 3 and 9 epochs with their last value."""
        draws, base, rng = random.Random(0), demo(), np.random.default_rng(0)
        settings = [SPACE.setting(lambda _, dimension: dimension.draw(draws), base) for _ in range(1000)]
        last = [self.true_value(values, EPOCHS) for values in settings]
        noise = math.hypot(SEED_NOISE, EVALUATION_NOISE)
        found = []
        for epoch in (1, 3, 9):
            scores = [self.true_value(values, epoch) + rng.normal(0, noise) for values in settings]
            ranks = [np.argsort(np.argsort(sample)) for sample in (scores, last)]
            found.append(float(np.corrcoef(ranks)[0, 1]))
        return found


OBJECTIVES = (Objective("early epochs tell much", 1.0, 0.1), Objective("early epochs tell little", 1.5, 0.2))
