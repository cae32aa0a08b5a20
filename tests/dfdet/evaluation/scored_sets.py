"""Scored sets from plain numbers, for tests of what is computed from scores."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dfdet.evaluation.aggregate import Units
from dfdet.evaluation.scored import SCHEMA, Scored, Undetected


def scored_set(
    name="s",
    *,
    videos=40,
    frames=4,
    methods=("A", "B"),
    strength=1.0,
    seed=0,
    dataset="d",
    checkpoint="c",
    undetected=(),
    people=None,
):
    """A set whose video ``i`` is real or fake by turns; its people have a video of each kind."""
    rng = np.random.default_rng(seed)
    kinds = ("real", *methods)
    rows = []
    for number in range(videos):
        method = kinds[number % len(kinds)]
        person = number // len(kinds) % (people or videos)
        level = rng.normal() + strength * (method != "real")
        for frame in range(frames):
            logit = np.float32(level + rng.normal())
            rows.append(
                {
                    "key": f"{dataset}/{method}/v{number}/{frame:06d}",
                    "video": f"{dataset}/{method}/v{number}",
                    "method": method,
                    "label": int(method != "real"),
                    "cluster": f"person/{dataset}/{person}",
                    "frame": frame,
                    "score": np.float32(1 / (1 + np.exp(-logit))),
                    "logit": logit,
                }
            )
    return Scored(name, f"set-{name}", checkpoint, pa.Table.from_pylist(rows, SCHEMA), tuple(undetected))


def lost(name, method="real", dataset="d", cluster=None):
    video = f"{dataset}/{method}/{name}"
    return Undetected(video, int(method != "real"), method, cluster or f"video/{video}", "no face")


def units_of(label, score, cluster=None):
    n = len(label)
    codes = np.arange(n) if cluster is None else np.asarray(cluster)
    names = tuple(f"c{code}" for code in range(int(codes.max(initial=-1)) + 1))
    return Units(
        np.asarray(label, np.int8),
        np.asarray(score, np.float64),
        np.arange(n, dtype=np.int32),
        np.asarray(label, np.int32),
        codes.astype(np.int32),
        tuple(f"v{row}" for row in range(n)),
        ("real", "A"),
        names,
    )
