"""Pictures of a run: losses, metrics by epoch, scores by method.

Figures are made without pyplot, which keeps a global list of them. Colours are Okabe and Ito's, told
apart by colour-blind readers too; lines differ in dash as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from dfdet.runs.runfolder import read_metrics

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8C8C8C"
DASHES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
DPI = 120
BINS = 40

Points = tuple[list[float], list[float]]


def training_curves(metrics_jsonl: Path, out: Path) -> list[Path]:
    """Draws ``loss.png`` and ``metrics.png`` from a run's records.

    Args:
        metrics_jsonl: The records; nulls and lines cut short are left out.
        out: Folder of the pictures; made if need be.

    Returns:
        The pictures written; none of what has no records.
    """
    records = read_metrics(metrics_jsonl)
    out.mkdir(parents=True, exist_ok=True)
    figures = {"loss.png": _loss_figure(records), "metrics.png": _metrics_figure(records)}
    return [_save(figure, out / name) for name, figure in figures.items() if figure]


def score_histogram(labels: ArrayLike, scores: ArrayLike, methods: Sequence[str], path: Path) -> None:
    """Draws the scores of each method's fakes over those of the reals, a row a method.

    Args:
        labels: 0 real, 1 fake ``[n]``.
        scores: Fake probabilities ``[n]`` (0 to 1).
        methods: Name of each sample's method ``[n]``.
        path: The picture; its folder is made if need be.
    """
    fake, values, names = np.asarray(labels).astype(bool), np.asarray(scores), np.asarray(methods, dtype=str)
    kinds = sorted(set(names[fake].tolist())) or [""]
    figure = Figure(figsize=(7, 1.2 + 1.25 * len(kinds)), layout="constrained")
    rows: NDArray[Any] = figure.subplots(len(kinds), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, kind, colour in zip(rows, kinds, cycle(COLOURS), strict=False):
        _histogram(axes, values[~fake], "real", GREY, filled=True)
        _histogram(axes, values[fake & (names == kind)], kind, colour)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
        _tidy(axes)
    rows[0].set(xlim=(0, 1), yscale="log", ylim=(0.05, 400))
    rows[0].set_yticks([0.1, 1, 10, 100], labels=["0.1", "1", "10", "100"])
    rows[0].set_title("Scores by method", loc="left")
    rows[-1].set_xlabel("score (probability of a fake)")
    figure.supylabel("share of the frames in a bin (%)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)


def _histogram(axes: Axes, scores: NDArray[Any], name: str, colour: str, filled: bool = False) -> None:
    if not len(scores):
        return
    counts, edges = np.histogram(np.clip(scores, 0, 1), bins=BINS, range=(0, 1))
    label = f"{name} ({len(scores):,})"
    share = 100 * counts / len(scores)
    if filled:
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.45, label=label)
    else:
        axes.stairs(share, edges, color=colour, linewidth=1.8, label=label)


def _loss_figure(records: list[dict[str, Any]]) -> Figure | None:
    """One panel a loss term, for their ranges differ, and one for the learning rate."""
    keys = _keys(records, "train/loss/")
    terms = sorted(keys, key=lambda key: (not key.endswith("/total"), key))
    if not terms:
        return None
    panels = terms + [key for key in ("optim/lr",) if key in _keys(records, key)]
    figure = Figure(figsize=(7, 0.8 + 1.6 * len(panels)), layout="constrained")
    rows: NDArray[Any] = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, key, colour in zip(rows, panels, cycle(COLOURS), strict=False):
        steps, values = _points(records, key, "step")
        if key == "optim/lr":
            axes.plot(steps, values, color=GREY, linewidth=1.8)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            axes.set_ylabel("learning rate\n(per step)")
        else:
            _trend(axes, steps, values, colour)
            axes.set_ylabel(f"{key.rpartition('/')[2]} loss")
        _tidy(axes)
    rows[0].set_title("Training loss by term (thin: logged, thick: running mean)", loc="left", fontsize=11)
    rows[-1].set_xlabel("optimizer steps")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _trend(axes: Axes, steps: list[float], values: list[float], colour: str) -> None:
    """The values, and where there are many, their running mean over a thirtieth of them on top."""
    half = len(values) // 60
    if half < 1:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="." if len(values) < 30 else None)
        return
    means = np.convolve(values, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.4)
    axes.plot(steps[half:-half], means, color=colour, linewidth=1.8)


def _metrics_figure(records: list[dict[str, Any]]) -> Figure | None:
    """AUROC and AP of videos: validation by epoch, the best checkpoint's test values as dashed lines."""
    titles = {"auroc": "AUROC", "ap": "AP of the fake class"}
    sets = {
        f"{split}/{name}": None
        for split in ("val", "test")
        for metric in titles
        for name in _set_keys(records, split, metric)
    }
    if not sets:
        return None
    colours = dict(zip(sets, cycle(COLOURS), strict=False))
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, squeeze=False)[0]
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        _draw_metric(axes, records, metric, colours)
        axes.set(xlabel="epochs", ylabel=f"{title} (0 to 1)")
        axes.set_title(f"{title}, video level", loc="left", fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8, frameon=False)
        _tidy(axes)
    return figure


def _draw_metric(axes: Axes, records: list[dict[str, Any]], metric: str, colours: dict[str, str]) -> None:
    for name, key in _set_keys(records, "val", metric).items():
        epochs, values = _first_by_position(*_points(records, key, "epoch"))
        label = f"validation {name} (highest {max(values):.4f})"
        axes.plot(epochs, values, color=colours[f"val/{name}"], linewidth=1.8, marker="o", label=label)
    for (name, key), dash in zip(_set_keys(records, "test", metric).items(), cycle(DASHES), strict=False):
        value = _points(records, key, "epoch")[1][-1]
        label = f"test {name}, best checkpoint ({value:.4f})"
        axes.axhline(value, color=colours[f"test/{name}"], linestyle=dash, linewidth=1.6, label=label)


def _set_keys(records: list[dict[str, Any]], split: str, metric: str) -> dict[str, str]:
    """Keys of a video metric by the name of the set."""
    keys = [key.split("/") for key in _keys(records, f"{split}/")]
    return {parts[1]: "/".join(parts) for parts in keys if parts[2:] == ["video", metric]}


def _keys(records: Iterable[dict[str, Any]], prefix: str) -> list[str]:
    """Keys that have a number somewhere, in the order of their first record."""
    found = {key: None for record in records for key, value in record.items() if _is_number(value)}
    return [key for key in found if key.startswith(prefix)]


def _points(records: list[dict[str, Any]], key: str, position: str) -> Points:
    pairs = [(r.get(position, 0), r[key]) for r in records if _is_number(r.get(key))]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _first_by_position(positions: list[float], values: list[float]) -> Points:
    """One value a position: the record of the run's end repeats the last epoch, for the best checkpoint."""
    first: dict[float, float] = {}
    for position, value in zip(positions, values, strict=True):
        first.setdefault(position, value)
    return list(first), list(first.values())


def _tidy(axes: Axes) -> None:
    axes.grid(True, color="#E3E3E3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    return path
