"""What the pictures of a sweep's report share: marks and names; states differ in their marker too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from dfdet.html.figure import Figure, label_text
from dfdet.sweep.results import Setting, score_text

Distributions = Mapping[str, BaseDistribution]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The shortest ends of dotted paths that are all different, as ``optim.lr`` to ``lr``."""
    names: dict[str, str] = {}
    paths = list(paths)
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-size:]) for size in range(1, len(parts) + 1)]
        taken = ["." + other for other in paths if other != path]
        names[path] = next((end for end in ends if not any(o.endswith("." + end) for o in taken)), path)
    return names


def value_text(value: Any, digits: int = 4) -> str:
    """A value of a setting for people: few digits of a number."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def distributions_of(trials: Iterable[FrozenTrial], order: Iterable[str]) -> dict[str, BaseDistribution]:
    """The dimensions that settings had, first those of ``order``; a range that was changed is their union."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        for path, dist in trial.distributions.items():
            known = found.get(path, dist)
            found[path] = dist if known == dist else _union(known, dist)
    return {path: found[path] for path in [*order, *found] if path in found}


def _union(one: Any, other: Any) -> BaseDistribution:
    if isinstance(one, CategoricalDistribution):
        return other  # Optuna lets no choices change
    return FloatDistribution(min(one.low, other.low), max(one.high, other.high), log=one.log)


def marks(
    name: str,
    settings: Sequence[Setting],
    x: Callable[[Setting], Any],
    y: Callable[[Setting], Any],
    colour: str,
    symbol: str = "circle",
    size: int = 8,
) -> Figure:
    """A mark a setting, that tells the setting to who points at it."""
    line = 1.5 if symbol in ("x-thin", "line-ns-open") else 0
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(map(x, settings)),
        "y": list(map(y, settings)),
        "customdata": [setting.number for setting in settings],
        "hoverinfo": "text",
        "marker": {"color": colour, "size": size, "symbol": symbol, "line": {"color": colour, "width": line}},
    }


def hover_text(setting: Setting) -> str:
    """A setting on a few lines of Plotly's HTML; the page shows it for the number in ``customdata``."""
    lines = [setting.name + (f" (published: {setting.published})" if setting.published else "")]
    lines += [" / ".join(map(score_text, setting.scores))] if setting.scores else []
    stopped = "stopped after " if setting.state == "pruned" else ""
    lines.append(f"{stopped}{setting.epochs} epochs")
    lines += [f"{path} = {value_text(value)}" for path, value in setting.params.items()]
    return "<br>".join(map(label_text, lines))
