"""Where a sweep stands: one plain line for logs that are read for hours, a table for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dfdet.sweep.results import ENDED, Direction, Setting, best_first, pareto_front, read_setting, score_text

SHOWN_RUNNING = 4
"""Running settings that a line names; a table names all (settings)."""
SHOWN_EVENTS = 6
REASON_LENGTH = 90


@dataclass(frozen=True)
class Running:
    """A setting under way."""

    name: str
    epoch: int
    """Last one reported; 0: starting (epochs)."""
    epochs: int
    """That it is trained for at most (epochs)."""
    score: float | None
    """Last value reported."""
    elapsed_s: float
    """Since it was started first (seconds)."""


@dataclass(frozen=True)
class Status:
    """All that the console shows of a sweep, or of its last runs."""

    title: str
    limit: int
    """Settings to be tried."""
    complete: int
    pruned: int
    failed: int
    running: tuple[Running, ...]
    best: tuple[Setting, ...]
    """The best setting; of several objectives, the Pareto front; empty in the last runs."""
    seconds_left: float | None
    """Estimate from what has ended so far; None: nothing to go by."""
    events: tuple[str, ...]
    """What ended last, newest first."""

    @property
    def ended(self) -> int:
        """Settings that need no more work."""
        return self.complete + self.pruned + self.failed


def summarize(
    trials: Iterable[FrozenTrial],
    limit: int,
    directions: Sequence[Direction],
    epochs: int,
    now: datetime,
    concurrent: int | None = None,
) -> Status:
    """The state of a study; also of that of the last runs, told by their attribute ``setting``.

    Args:
        trials: Of the study.
        limit: Settings to be tried; of the last runs, how many there are.
        directions: Of the objectives.
        epochs: That a setting without ``optim.epochs`` of its own is trained for (epochs).
        now: Local time without zone, as Optuna's.
        concurrent: Settings side by side; None: as many as run now.
    """
    pairs = [(trial, read_setting(trial)) for trial in trials]
    settings = [setting for _, setting in pairs]
    states = [setting.state for setting in settings]
    final = any("setting" in trial.user_attrs for trial, _ in pairs)
    running = tuple(_running(t, s, epochs, now) for t, s in pairs if s.state == "running")
    best = (
        best_first(settings, directions)[:1] if len(directions) == 1 else pareto_front(settings, directions)
    )
    ended = sum(map(states.count, ENDED))
    return Status(
        title="last runs" if final else "sweep",
        limit=limit,
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        failed=states.count("failed"),
        running=running,
        best=() if final else tuple(best),
        seconds_left=_seconds_left(settings, running, limit - ended - len(running), concurrent),
        events=tuple(_event(trial, setting) for trial, setting in _newest(pairs)),
    )


def line(status: Status) -> str:
    """One plain line, as ``sweep 7/16  running 1 (0012 epoch 3/10 .8120)  pruned 3  failed 0  best ...``."""
    parts = [f"{status.title} {status.ended}/{status.limit}", _running_text(status.running)]
    if status.title == "sweep":
        parts.append(f"pruned {status.pruned}")
    parts.append(f"failed {status.failed}")
    if status.title == "sweep":
        parts.append(_best_text(status.best))
    parts.append(_left_text(status))
    return "  ".join(part for part in parts if part)


def table(status: Status) -> Group:
    """The same for a terminal: counts, best so far, an epoch bar a running setting, latest events."""
    head = f"[bold]{status.title} {status.ended}/{status.limit}[/]  complete {status.complete}"
    head += f"  pruned {status.pruned}" if status.title == "sweep" else ""
    head += f"  [{'red' if status.failed else 'default'}]failed {status.failed}[/]  {_left_text(status)}"
    parts: list[Any] = [Text.from_markup(head)]
    if status.title == "sweep":
        parts.append(Text(_best_text(status.best), style="green" if status.best else "dim"))
        parts += [Text("  " + _values_text(setting), style="dim") for setting in status.best[:1]]
    if status.running:
        parts.append(_bars(status.running))
    if status.events:
        parts.append(Text("latest:", style="dim"))
        parts += [Text.from_markup("  " + escape(event)) for event in status.events]
    return Group(*parts)


def duration_text(seconds: float) -> str:
    """A rounded time for people, as ``40 s``, ``12 min``, ``5 h 20 min``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _running(trial: FrozenTrial, setting: Setting, epochs: int, now: datetime) -> Running:
    started = trial.datetime_start or now
    return Running(
        name=_name(trial, setting),
        epoch=max([*setting.curve, setting.epochs]),
        epochs=int(setting.values.get("optim.epochs", epochs)),
        score=setting.curve[max(setting.curve)] if setting.curve else None,
        elapsed_s=max(0.0, (now - started).total_seconds()),
    )


def _name(trial: FrozenTrial, setting: Setting) -> str:
    """Its number; of a last run, the setting's number and the seed, as in its run folder."""
    attrs = trial.user_attrs
    return f"{attrs['setting']:04d}-s{attrs['seed']}" if "setting" in attrs else setting.name


def _seconds_left(
    settings: list[Setting], running: Sequence[Running], waiting: int, concurrent: int | None
) -> float | None:
    """Mean time of what has ended, times what is left, over what runs side by side (seconds)."""
    times = [s.wall_s for s in settings if s.state in ("complete", "pruned") and s.wall_s]
    if waiting <= 0 and not running:
        return 0.0
    if not times:
        return None
    mean = fmean(times)
    rests = [max(0.0, mean - one.elapsed_s) for one in running]
    lanes = concurrent or len(running) or 1
    return max([*rests, (sum(rests) + mean * max(waiting, 0)) / lanes])


def _newest(pairs: list[tuple[FrozenTrial, Setting]]) -> list[tuple[FrozenTrial, Setting]]:
    ended = [pair for pair in pairs if pair[1].state in ENDED]
    ended.sort(key=lambda pair: (pair[0].datetime_complete or datetime.min, pair[1].number), reverse=True)
    return ended[:SHOWN_EVENTS]


def _event(trial: FrozenTrial, setting: Setting) -> str:
    """As ``14:05 0011 pruned at epoch 3 (.7100)``."""
    clock = f"{trial.datetime_complete:%H:%M} " if trial.datetime_complete else ""
    name = clock + _name(trial, setting)
    if setting.state == "complete":
        return f"{name} complete {_scores_text(setting)}{_published(setting)}"
    if setting.state == "pruned":
        score = f" ({score_text(setting.curve[max(setting.curve)])})" if setting.curve else ""
        return f"{name} pruned at epoch {setting.stopped_epoch or setting.epochs}{score}"
    reason = " ".join((setting.reason or "no reason was recorded").split())
    return f"{name} failed: {reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 3] + '...'}"


def _running_text(running: Sequence[Running]) -> str:
    shown = [
        f"{one.name} epoch {one.epoch}/{one.epochs}"
        + (f" {score_text(one.score)}" if one.score is not None else "")
        if one.epoch
        else f"{one.name} starting"
        for one in running[:SHOWN_RUNNING]
    ]
    more = [f"{len(running) - SHOWN_RUNNING} more"] if len(running) > SHOWN_RUNNING else []
    return f"running {len(running)}" + (f" ({', '.join(shown + more)})" if shown else "")


def _best_text(best: Sequence[Setting]) -> str:
    if not best:
        return "best -"
    if len(best[0].scores) > 1:
        names = " ".join(setting.name for setting in best[:SHOWN_RUNNING])
        return f"front {len(best)} ({names}{' ...' if len(best) > SHOWN_RUNNING else ''})"
    return f"best {_scores_text(best[0])} trial {best[0].name}{_published(best[0])}"


def _published(setting: Setting) -> str:
    return f" (published: {setting.published})" if setting.published else ""


def _scores_text(setting: Setting) -> str:
    return " / ".join(map(score_text, setting.scores))


def _values_text(setting: Setting) -> str:
    return "  ".join(
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in setting.params.items()
    )


def _left_text(status: Status) -> str:
    if status.seconds_left is None:
        return "time left not known yet"
    return f"about {duration_text(status.seconds_left)} left" if status.seconds_left else ""


def _bars(running: Sequence[Running]) -> Table:
    rows = Table(box=None, show_header=False, padding=(0, 1))
    for one in running:
        score = "" if one.score is None else score_text(one.score)
        bar = ProgressBar(total=max(one.epochs, 1), completed=min(one.epoch, one.epochs), width=24)
        place = f"epoch {one.epoch}/{one.epochs}" if one.epoch else "starting"
        rows.add_row(one.name, bar, place, score, duration_text(one.elapsed_s))
    return rows
