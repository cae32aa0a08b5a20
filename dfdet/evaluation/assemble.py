"""Scores of slices put together again: a table for each checkpoint, set and corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dfdet.data.index import Index
from dfdet.data.plan import evaluation_plan
from dfdet.errors import TrainingError
from dfdet.evaluation.request import Request, key
from dfdet.evaluation.scored import Scored
from dfdet.evaluation.scorer import Part, Slice


@dataclass(frozen=True)
class Scores:
    """All that an evaluation has scored, by the label of the checkpoint."""

    val: dict[str, dict[str, Scored]]
    """The validation set's, by its name."""
    tests: dict[str, dict[str, Scored]]
    """By the name of the test set."""
    corrupted: dict[str, dict[str, dict[str, Scored]]]
    """By the name of the test set and of the corruption."""
    skipped: dict[str, int]
    """Samples that could not be read, by the key of the set."""


def assemble(request: Request, part_of: Callable[[Slice], Part]) -> Scores:
    """Joins the parts of all slices.

    Raises:
        TrainingError: More samples of a set were skipped than ``max_damaged``.
        DfdetError: Scores that are not finite.
    """
    found = Scores({}, {}, {}, {})
    for model in request.models:
        found.val[model.label], found.tests[model.label], found.corrupted[model.label] = {}, {}, {}
    for name, index in request.val.items():
        for label, _, scored in _joined(request, part_of, key("val", name), name, index, found.skipped):
            found.val[label][name] = scored
    for name, index in request.tests.items():
        for label, how, scored in _joined(request, part_of, key("test", name), name, index, found.skipped):
            if how is None:
                found.tests[label][name] = scored
            else:
                found.corrupted[label].setdefault(name, {})[how] = scored
    return found


def _joined(
    request: Request,
    part_of: Callable[[Slice], Part],
    set_key: str,
    name: str,
    index: Index,
    skipped: dict[str, int],
) -> Iterator[tuple[str, str | None, Scored]]:
    """Label of the checkpoint, name of the corruption (None: none) and scores, of a set."""
    groups: dict[tuple[int, ...], list[Slice]] = {}
    for part in request.slices:
        if part.set_key == set_key:
            groups.setdefault(part.checkpoints, []).append(part)
    for places, parts in groups.items():
        done = [part_of(part) for part in sorted(parts, key=lambda part: part.low)]
        scores = np.concatenate([each.scores for each in done])
        plan = evaluation_plan(index, request.options.batch, parts[0].look.clip_frames)
        valid = np.concatenate([each.valid for each in done])
        ids = plan.ids[plan.valid][valid]
        skipped[set_key] = len(index) - len(ids)
        if skipped[set_key] > request.options.max_damaged:
            raise TrainingError(
                f"{name}: {skipped[set_key]} samples could not be read, more than --max_damaged"
                f" {request.options.max_damaged}; build the set again, or raise it"
            )
        names = [None, *(each.name for each in request.work.corruptions)] if parts[0].corrupted else [None]
        for column, place in enumerate(places):
            model = request.models[place]
            for row, how in enumerate(names):
                values = scores[valid, row, column].T
                yield model.label, how, Scored.of(name, index, ids, *values, checkpoint=model.fingerprint)
