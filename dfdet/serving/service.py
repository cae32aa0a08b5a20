"""From files to answers: faces are found in one place, scored in another, both within a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from dfdet.data.decode import Pixels
from dfdet.prediction.verdict import Rule
from dfdet.serving.answer import Answer, Asked, FileAnswer, FoundFaces, ModelFacts, damaged, judged
from dfdet.serving.graph import Scored, probe
from dfdet.serving.limits import Limits
from dfdet.serving.metrics import Metrics
from dfdet.serving.refused import RefusedError

logger = logging.getLogger(__name__)

Find = Callable[[bytes, Asked, float], Awaitable[FoundFaces]]
"""Faces of a file, within so many seconds; raises :class:`RefusedError` where it is the file's fault."""
Score = Callable[[Sequence[Pixels]], Awaitable[list[Scored]]]
"""Scores of crops in their order."""

FRESH_S = 10.0
"""What has worked so lately works."""
PROBE_S = 5.0
"""A probe that takes longer fails."""


class Service:
    """A model at work.

    Args:
        find: Finds faces.
        score: Scores crops.
        model: Which model.
        rule: Of the bundle.
        aggregate: Score of a person from those of the frames.
        limits: The time among them.
        metrics: Where to count.
    """

    def __init__(
        self,
        find: Find,
        score: Score,
        *,
        model: ModelFacts,
        rule: Rule,
        aggregate: str,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._find, self._score = find, score
        self.model, self.rule, self.aggregate = model, rule, aggregate
        self.limits, self.metrics = limits, metrics
        self._worked_s = -FRESH_S

    async def predict(self, files: Sequence[bytes], asked: Asked, request_id: str) -> Answer:
        """What is said of files.

        Raises:
            RefusedError: None of them can be scored, or time is up.
        """
        try:
            async with asyncio.timeout(self.limits.timeout_s), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._file(file, asked)) for file in files]
        except TimeoutError as error:
            told = f"no answer within {self.limits.timeout_s:g} s; send less, or ask for fewer frames"
            raise RefusedError(504, "timeout", told) from error
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        outcomes = [task.result() for task in tasks]
        refused = [each for each in outcomes if isinstance(each, RefusedError)]
        if len(refused) == len(outcomes):
            raise refused[0]
        answers = [damaged(each) if isinstance(each, RefusedError) else each for each in outcomes]
        return self._answer(answers, asked, request_id)

    async def ready(self) -> str | None:
        """Why no prediction can be made now; None where all works."""
        if time.monotonic() - self._worked_s < FRESH_S:
            return None
        try:
            async with asyncio.timeout(PROBE_S):
                await self._score([probe()])
        except Exception as error:  # noqa: BLE001 - whatever fails is the answer
            logger.warning("the probe failed: %s", type(error).__name__)
            return "the model does not answer"
        self._worked_s = time.monotonic()
        return None

    async def _file(self, data: bytes, asked: Asked) -> FileAnswer | RefusedError:
        try:
            with self.metrics.stage("faces"):
                found = await self._find(data, asked, self.limits.timeout_s)
        except RefusedError as refused:
            self.metrics.files.labels("damaged").inc()
            return refused
        scored: list[Scored] = []
        if found.faces:
            with self.metrics.stage("model"):
                scored = await self._score([face.crop for face in found.faces])
            self._worked_s = time.monotonic()
        for each in scored:
            if each.batch:
                self.metrics.batch.observe(each.batch)
        answer = judged(found, scored, self.rule, self.aggregate)
        self.metrics.faces.inc(len(scored))
        self.metrics.files.labels(answer.verdict or answer.status).inc()
        return answer

    def _answer(self, answers: Sequence[FileAnswer], asked: Asked, request_id: str) -> Answer:
        return Answer(
            request_id=request_id,
            model=self.model,
            threshold=self.rule.threshold,
            threshold_origin=self.rule.origin,
            temperature=self.rule.temperature,
            aggregate=f"max over faces of {self.aggregate}" if asked.everyone else self.aggregate,
            files=tuple(answers),
        )
