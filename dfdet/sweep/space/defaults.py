"""The default search space of a recipe, and the published settings that are tried first.

Ranges are this project's own, wide enough for what was published (the loss weights {0, .1, .5, 1} of
arXiv 2503.19683 and 2508.06248; CosFace's margin .35 and ArcFace's .5 at scale 64) and centred on
the recipe where scale matters. Each holds the recipe's own value.
"""

from __future__ import annotations

import math
from typing import Any

from dfdet.config import Config, leaves
from dfdet.sweep.space.space import Dimension, Space, Value

UNDER_MARGIN: dict[str, tuple[Value, ...]] = {"model.head": ("cosine", "angular")}
WHERE_FEATURES_TRAIN: dict[str, tuple[Value, ...]] = {"tuning.mode": ("ln", "full", "lora")}
"""Of a frozen tower's features the pairwise terms are constants: they train nothing."""
UNDER_SLERP: dict[str, tuple[Value, ...]] = {"loss.slerp": (True,)}

PUBLISHED: dict[str, dict[str, Value]] = {
    "paper-run-file": {"loss.slerp": True, "loss.alignment": 0.0, "loss.uniformity": 0.0},
    "paper-released": {"loss.slerp": True, "loss.alignment": 0.1, "loss.uniformity": 0.1},
    "gend": {"loss.slerp": False, "loss.alignment": 0.1, "loss.uniformity": 0.5},
}
"""Loss weights as published: the run file and the released checkpoint of arXiv 2503.19683, and GenD
(arXiv 2508.06248). All have a linear head, no label smoothing, and slerp over the whole arc."""


def default_space(base: Config, widest_crop: float = math.inf) -> Space:
    """What is searched where no file says otherwise.

    Loss weights, label smoothing, slerp and its range, the head with margin and scale, crop margin,
    augmentation strength, learning rate and warm-up. A probe has no pairwise terms, and a wider range
    of learning rates.

    Args:
        base: What settings change.
        widest_crop: Largest crop scale that the sets hold.
    """
    dimensions = _loss(base) | _head(base) | _data(base, widest_crop) | _optim(base)
    ranged = {path: d for path, d in dimensions.items() if d.choices is not None or d.range[0] < d.range[1]}
    return Space(dimensions=ranged).resolved(base)


def published_points(base: Config) -> dict[str, dict[str, Any]]:
    """Known settings to try first, by name; what one does not name stays as the recipe has it.

    ``recipe`` is the recipe's own setting; a published one that equals it is not listed again.
    """
    own = leaves(base.model_dump())
    common = {
        "loss.label_smoothing": 0.0,
        "loss.slerp_low": 0.0,
        "loss.slerp_high": 1.0,
        "model.head": "linear",
        "model.margin": 0.0,
    }
    points = {name: common | values for name, values in PUBLISHED.items()}
    recipe = {path: own[path] for path in [*next(iter(points.values())), *default_space(base).dimensions]}
    return {"recipe": recipe} | {
        name: point for name, point in points.items() if any(own[path] != point[path] for path in point)
    }


def _around(own: float, low: float, high: float, **more: Any) -> Dimension:
    """A range that also holds the recipe's own value."""
    return Dimension(low=min(low, own), high=max(high, own), **more)


def _loss(base: Config) -> dict[str, Dimension]:
    loss = base.loss
    middle = min(max(0.5, loss.slerp_low), loss.slerp_high)  # so that no low end is above a high end
    return {
        "loss.uniformity": _around(loss.uniformity, 0.0, 1.0, when=WHERE_FEATURES_TRAIN),
        "loss.alignment": _around(loss.alignment, 0.0, 1.0, when=WHERE_FEATURES_TRAIN),
        "loss.label_smoothing": _around(loss.label_smoothing, 0.0, 0.2),
        "loss.slerp": Dimension(choices=(False, True)),
        "loss.slerp_low": Dimension(low=0.0, high=middle, when=UNDER_SLERP),
        "loss.slerp_high": Dimension(low=middle, high=1.0, when=UNDER_SLERP),
    }


def _head(base: Config) -> dict[str, Dimension]:
    model = base.model
    return {
        "model.head": Dimension(choices=("linear", "cosine", "angular")),
        "model.margin": _around(model.margin, 0.0, 0.5, when=UNDER_MARGIN),
        "model.scale": _around(model.scale, 4.0, 64.0, log=True, when=UNDER_MARGIN),
    }


def _data(base: Config, widest_crop: float) -> dict[str, Dimension]:
    return {
        "data.crop_scale": _around(base.data.crop_scale, 1.0, min(1.6, widest_crop)),
        "data.augment.strength": _around(base.data.augment.strength, 0.0, 1.5),
    }


def _optim(base: Config) -> dict[str, Dimension]:
    """Five times the recipe's rate either way, a hundred times up for a probe; never below the floor."""
    optim = base.optim
    floor = 0.0 if optim.schedule == "constant" else optim.min_lr
    up = 100.0 if base.tuning.mode == "probe" else 5.0
    return {
        "optim.lr": Dimension(low=max(optim.lr / 5, floor), high=min(optim.lr * up, 1.0), log=True),
        "optim.warmup_epochs": _around(optim.warmup_epochs, 0.0, min(2.0, optim.epochs / 4)),
    }
