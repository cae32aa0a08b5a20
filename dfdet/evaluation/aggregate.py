"""Frames and videos as columns to rank, and the score of a video from those of its frames."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfdet.errors import ConfigError
from dfdet.evaluation.metrics import video_scores
from dfdet.evaluation.scored import Scored

Floats = NDArray[np.float64]
UndetectedAs = Literal["excluded", "half"]
"""Whether a video without scores is left out or has the score .5."""

TEMPORAL = "temporal"
"""The mean over a video's frames of their clips' scores, where the checkpoint has a temporal head."""
_TOP = re.compile(r"top([1-9][0-9]*)")


@dataclass(frozen=True, eq=False)
class Units:
    """What is ranked, frames or videos, as columns ``[n]``."""

    label: NDArray[np.int8]
    """0 real, 1 fake."""
    score: Floats
    """Fake probabilities (0 to 1)."""
    video: NDArray[np.int32]
    """Index into ``videos``; of videos each occurs once."""
    method: NDArray[np.int32]
    """Index into ``methods``."""
    cluster: NDArray[np.int32]
    """Index into ``clusters``."""
    videos: tuple[str, ...]
    """``<dataset>/<source>/<video>``."""
    methods: tuple[str, ...]
    """``real`` and forgery methods."""
    clusters: tuple[str, ...]
    """Names of the bootstrap clusters."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: NDArray[Any]) -> Units:
        """Some of the rows: a mask ``[n]`` or their numbers."""
        columns = ("label", "score", "video", "method", "cluster")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def frames(scored: Scored, temperature: float | None = None, of: Literal["", "clip_"] = "") -> Units:
    """The frames of a set.

    Args:
        temperature: Scores are ``sigmoid(logit / temperature)``; None: the scores as they are.
        of: ``clip_`` gives each frame the score of its clip.
    """
    video, videos = scored.codes("video")
    method, methods = scored.codes("method")
    cluster, clusters = scored.codes("cluster")
    if temperature is None:
        score = scored.column(f"{of}score").astype(np.float64)
    else:
        score = sigmoid(scored.column(f"{of}logit").astype(np.float64) / temperature)
    label = scored.column("label").astype(np.int8)
    return Units(label, score, video, method, cluster, videos, methods, clusters)


def videos(
    scored: Scored,
    how: str = "mean",
    undetected: UndetectedAs = "excluded",
    temperature: float | None = None,
) -> Units:
    """The videos of a set: one of dataset, method and name is one video.

    Args:
        how: Score of a video from its frames: ``mean``, ``median``, ``max``, ``topK`` (``top3``), the mean
            of the K highest, or ``temporal``, the mean of their clips' scores.
        undetected: Whether videos without scores are left out or have .5.
        temperature: As for :func:`frames`.

    Raises:
        ConfigError: ``how`` is none of these, or ``temporal`` and there are no scores of clips.
        DfdetError: A video has real and fake frames.
    """
    score_of = aggregator(how)
    if how == TEMPORAL and not scored.has_clips:
        raise without_clips(f"the scores of {scored.name}")
    units = frames(scored, temperature, "clip_" if how == TEMPORAL else "")
    codes, label, _ = video_scores(units.video, units.label, units.score)
    rows, number = np.unique(units.video, return_index=True, return_inverse=True)[1:]
    found = replace(
        units.take(rows), label=label.astype(np.int8), score=score_of(number, units.score, len(codes))
    )
    return _with_undetected(found, scored) if undetected == "half" and scored.undetected else found


def aggregator(how: str) -> Callable[[NDArray[Any], Floats, int], Floats]:
    """The function of video numbers ``[n]``, frame scores ``[n]`` and count of videos for a name.

    Raises:
        ConfigError: The name is none of ``mean``, ``median``, ``max``, ``topK`` and ``temporal``.
    """
    if how in (named := {"mean": _mean, "median": _median, "max": _max, TEMPORAL: _mean}):
        return named[how]
    if match := _TOP.fullmatch(how):
        most = int(match[1])
        return lambda video, score, count: _top(video, score, count, most)
    raise ConfigError(
        f"aggregate={how}: no way to score a video; give mean, median, max, or topK as top3, or temporal"
    )


def without_clips(what: str) -> ConfigError:
    """The refusal of ``temporal`` where there is no temporal head."""
    return ConfigError(
        f"aggregate={TEMPORAL}: {what}: without a temporal head (model.temporal), so no clip has a score;"
        " give mean, median, max, or topK as top3"
    )


def sigmoid(values: Floats) -> Floats:
    """``1 / (1 + exp(-x))`` without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def _mean(video: NDArray[Any], score: Floats, count: int) -> Floats:
    return np.bincount(video, score, minlength=count) / np.bincount(video, minlength=count)


def _median(video: NDArray[Any], score: Floats, count: int) -> Floats:
    ranked, start, frames = _ranked(video, score, count)
    return (ranked[start + (frames - 1) // 2] + ranked[start + frames // 2]) / 2


def _max(video: NDArray[Any], score: Floats, count: int) -> Floats:
    ranked, start, frames = _ranked(video, score, count)
    return ranked[start + frames - 1]


def _top(video: NDArray[Any], score: Floats, count: int, most: int) -> Floats:
    ranked, start, frames = _ranked(video, score, count)
    owner = np.repeat(np.arange(count), frames)
    keep = np.arange(len(ranked)) >= (start + frames - np.minimum(frames, most))[owner]
    return _mean(owner[keep], ranked[keep], count)


def _ranked(
    video: NDArray[Any], score: Floats, count: int
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Scores rising within each video, and each video's first place and number of frames."""
    frames = np.bincount(video, minlength=count)
    return score[np.lexsort((score, video))], np.cumsum(frames) - frames, frames


def _with_undetected(units: Units, scored: Scored) -> Units:
    """The videos with those that have no scores, at .5."""
    more = scored.undetected
    label = np.array([video.label for video in more], np.int8)
    method, methods = _extended(units.methods, [video.method for video in more])
    cluster, clusters = _extended(units.clusters, [video.cluster for video in more])
    video, videos = _extended(units.videos, [video.video for video in more])
    return Units(
        np.append(units.label, label),
        np.append(units.score, np.full(len(more), 0.5)),
        np.append(units.video, video),
        np.append(units.method, method),
        np.append(units.cluster, cluster),
        videos,
        methods,
        clusters,
    )


def _extended(names: tuple[str, ...], more: list[str]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Codes of further names, and the names with those that are new."""
    code = {name: number for number, name in enumerate(names)}
    codes = [code.setdefault(name, len(code)) for name in more]
    return np.array(codes, np.int32), tuple(code)
