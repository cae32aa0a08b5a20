"""What a sweep leaves beside its study: settings as plain records, ``best.json``, the table of trials."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from dfdet.config import Config
from dfdet.runs.atomic import write_bytes_atomic

Direction = Literal["maximize", "minimize"]

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
CAPITALS = ("auroc", "ap", "eer", "f1")
ENDED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Setting:
    """One trial of the study, read once for tables, pages and console."""

    number: int
    state: str
    """complete, pruned, failed, running or waiting."""
    values: dict[str, Any] = field(default_factory=dict)
    """What was tried, by dotted path: its parameters, and fields that they put back to their defaults."""
    params: dict[str, Any] = field(default_factory=dict)
    """Values of the dimensions that exist at this setting, by dotted path."""
    scores: tuple[float, ...] = ()
    """A value an objective (mean over seeds); empty unless complete."""
    spread: tuple[float | None, ...] = ()
    """Standard deviation over seeds of each objective; empty with one seed."""
    published: str | None = None
    """Name of the published point that it is."""
    curve: dict[int, float] = field(default_factory=dict)
    """Value of the first objective by epoch, of the first seed."""
    epochs: int = 0
    """Trained, over all seeds (epochs)."""
    wall_s: float = 0.0
    """From its start to its end (seconds)."""
    worker_s: float = 0.0
    """Wall time multiplied by workers (seconds)."""
    stopped_epoch: int | None = None
    """Epoch at which early stopping ended it."""
    reason: str | None = None
    """Why it failed."""
    runs: tuple[str, ...] = ()
    """Its run folders."""

    @property
    def name(self) -> str:
        """Its number as in the names of run folders."""
        return f"{self.number:04d}"


def read_setting(trial: FrozenTrial) -> Setting:
    """The record of a trial; one that died before it wrote anything has only its parameters."""
    attrs = trial.user_attrs
    state = STATES[trial.state]
    curve = {int(step): float(value) for step, value in sorted(trial.intermediate_values.items())}
    return Setting(
        number=trial.number,
        state=state,
        values=dict(attrs.get("values") or trial.params),
        params=dict(trial.params),
        scores=tuple(trial.values) if state == "complete" else (),
        spread=_numbers(attrs.get("spread")),
        published=attrs.get("published"),
        curve=curve,
        epochs=int(attrs.get("epochs") or max(curve, default=0)),
        wall_s=float(attrs.get("wall_s") or 0.0),
        worker_s=float(attrs.get("worker_s") or 0.0),
        stopped_epoch=attrs.get("stopped_epoch"),
        reason=attrs.get("reason"),
        runs=tuple(attrs.get("runs") or ()),
    )


def read_settings(trials: Iterable[FrozenTrial]) -> list[Setting]:
    """Records of trials in the order of their numbers."""
    return sorted(map(read_setting, trials), key=lambda setting: setting.number)


def pareto_front(settings: Iterable[Setting], directions: Sequence[Direction]) -> list[Setting]:
    """The complete settings that no other beats, by their first objective; of one objective, the best.

    A setting beats another where it is nowhere worse and somewhere better.
    """
    complete = [setting for setting in settings if setting.scores]
    points = [_gains(setting, directions) for setting in complete]
    front = [
        (point, setting)
        for point, setting in zip(points, complete, strict=True)
        if not any(_beats(other, point) for other in points)
    ]
    return [setting for _, setting in sorted(front, key=lambda pair: (-pair[0][0], pair[1].number))]


def best_first(settings: Iterable[Setting], directions: Sequence[Direction]) -> list[Setting]:
    """The complete settings, best first: front after front where there are several objectives."""
    left = {setting.number: setting for setting in settings if setting.scores}
    if len(directions) == 1:
        return sorted(left.values(), key=lambda setting: (-_gains(setting, directions)[0], setting.number))
    ranked: list[Setting] = []
    while left:
        front = pareto_front(left.values(), directions)
        ranked += front
        left = {number: left[number] for number in left.keys() - {setting.number for setting in front}}
    return ranked


def score_text(value: float, *, signed: bool = False) -> str:
    """A score for people: ``.8754``, ``1.0000``, ``-.0120``; four digits where it is large or tiny."""
    sign = ("+" if value >= 0 else "-") if signed or value < 0 else ""
    size = abs(value)
    text = f"{size:.4f}" if size == 0 or 5e-4 <= size < 100 else f"{size:.4g}"
    return sign + text.removeprefix("0" if text.startswith("0.") else "")


def metric_text(metric: str) -> str:
    """A metric in few words: ``video AUROC on demo`` or ``step time (s)``."""
    parts = metric.split("/")
    if len(parts) == 4:
        _, name, level, kind = parts
        return f"{level} {kind.upper() if kind in CAPITALS else kind.replace('_', ' ')} on {name}"
    if not metric.startswith("perf/"):
        return metric
    words = re.sub(r"(?<!_per)_s$", " time (s)", re.sub("_mib$", " (MiB)", parts[-1]))
    return words.replace("_", " ")


def best_config(base: Config, values: Mapping[str, Any]) -> Config:
    """The base config with a setting's values, unnamed: a training with it is a run of its own."""
    return base.replace({**values, "run.name": None})


def write_best(folder: Path, config: Config) -> Path:
    """Writes ``best.json``, which ``train.py --config`` takes.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / "best.json"
    write_bytes_atomic(path, config.to_json().encode())
    return path


def write_trials(folder: Path, trials: Iterable[FrozenTrial], metrics: Sequence[str]) -> list[Path]:
    """Writes ``trials.csv`` and ``trials.parquet``: a row a setting, numbers in full precision.

    A dimension that does not exist at a setting is empty there.

    Raises:
        OSError: The folder cannot be written.
    """
    settings = read_settings(trials)
    columns = _columns(settings, metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(array.to_pylist() for array in columns.values()), strict=True))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    paths = [folder / "trials.csv", folder / "trials.parquet"]
    for path, data in zip(paths, (text.getvalue().encode(), sink.getvalue()), strict=True):
        write_bytes_atomic(path, data)
    return paths


def _columns(settings: list[Setting], metrics: Sequence[str]) -> dict[str, pa.Array]:
    paths = list(dict.fromkeys(path for setting in settings for path in setting.values))
    columns = {
        "number": pa.array([setting.number for setting in settings], pa.int64()),
        "state": pa.array([setting.state for setting in settings], pa.string()),
        "published": pa.array([setting.published for setting in settings], pa.string()),
    }
    columns |= {path: _typed([setting.values.get(path) for setting in settings]) for path in paths}
    for place, metric in enumerate(metrics):
        columns[metric] = _floats(setting.scores[place : place + 1] for setting in settings)
        columns[f"{metric} spread"] = _floats(s.spread[place : place + 1] for s in settings)
    return columns | {
        "epochs": pa.array([setting.epochs for setting in settings], pa.int64()),
        "stopped_epoch": pa.array([setting.stopped_epoch for setting in settings], pa.int64()),
        "wall_s": pa.array([setting.wall_s for setting in settings], pa.float64()),
        "worker_s": pa.array([setting.worker_s for setting in settings], pa.float64()),
        "reason": pa.array([setting.reason for setting in settings], pa.string()),
        "runs": pa.array([" ".join(setting.runs) for setting in settings], pa.string()),
    }


def _typed(values: list[Any]) -> pa.Array:
    """A column of one type: choices may mix numbers and words, which then all are words."""
    kinds = {type(value) for value in values if value is not None}
    for allowed, kind in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds and kinds <= allowed:
            return pa.array(values, kind)
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _floats(cells: Iterable[Sequence[float | None]]) -> pa.Array:
    return pa.array([cell[0] if cell else None for cell in cells], pa.float64())


def _numbers(spread: Any) -> tuple[float | None, ...]:
    if spread is None:
        return ()
    return tuple(spread) if isinstance(spread, (list, tuple)) else (float(spread),)


def _gains(setting: Setting, directions: Sequence[Direction]) -> tuple[float, ...]:
    """Scores with the sign that makes more the better."""
    pairs = zip(setting.scores, directions, strict=True)
    return tuple(score if direction == "maximize" else -score for score, direction in pairs)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
