"""What a sweep has cost, and what early stopping has saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfdet.sweep.results import Setting


@dataclass(frozen=True)
class Cost:
    """Of some settings."""

    settings: int
    epochs: int
    """Trained, over all seeds (epochs)."""
    worker_s: float
    """Wall time multiplied by workers (seconds)."""


@dataclass(frozen=True)
class Saving:
    """What stopped settings would have taken, had they been trained to their end."""

    epochs: int
    share: float
    """Of the epochs that the search would have taken (0 to 1)."""
    worker_s: float
    """Estimate, at the mean cost of an epoch of this search (seconds)."""


def cost_of(settings: Sequence[Setting]) -> Cost:
    """The sum over settings."""
    return Cost(len(settings), sum(s.epochs for s in settings), sum(s.worker_s for s in settings))


def saved_by_stopping(settings: Sequence[Setting], epochs: int, seeds: int) -> Saving:
    """What early stopping has saved.

    Args:
        settings: Of the search.
        epochs: That a setting without ``optim.epochs`` of its own is trained for (epochs).
        seeds: That each setting is trained on (seeds).
    """
    saved = sum(max(0, full_epochs(s, epochs, seeds) - s.epochs) for s in settings if s.state == "pruned")
    spent = cost_of(settings)
    per_epoch = spent.worker_s / spent.epochs if spent.epochs else 0.0
    return Saving(saved, saved / (saved + spent.epochs) if saved else 0.0, saved * per_epoch)


def full_epochs(setting: Setting, epochs: int, seeds: int) -> int:
    """Epochs of a setting that is trained to its end, over all seeds."""
    return int(setting.values.get("optim.epochs", epochs)) * seeds
