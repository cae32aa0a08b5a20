"""The scores of a named set under one checkpoint, as a table that goes to Parquet and back unchanged."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from dfdet.data.index import Index, failure_clusters
from dfdet.errors import DfdetError, InputError
from dfdet.evaluation.metrics import checked
from dfdet.runs.atomic import write_bytes_atomic
from dfdet.schema import decode_part

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
POOLED = "pooled"
_METADATA = b"dfdet.scored"
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("video", _TEXT),
        ("method", _TEXT),
        ("label", pa.int8()),
        ("cluster", _TEXT),
        ("frame", pa.int32()),
        ("score", pa.float32()),
        ("logit", pa.float32()),
    ]
)
CLIP_SCHEMA = pa.schema([*SCHEMA, ("clip_score", pa.float32()), ("clip_logit", pa.float32())])
"""Where the checkpoint has a temporal head: of each frame's clip too."""


@dataclass(frozen=True)
class Undetected:
    """A video of which no frame has a score: it stays in the denominators."""

    video: str
    """``<dataset>/<source>/<video>``, as in keys."""
    label: int
    """0 real, 1 fake."""
    method: str
    """``real`` or the forgery method."""
    cluster: str
    """Name of its bootstrap cluster."""
    reason: str


@dataclass(frozen=True)
class Scored:
    """Scores of a set's frames, in the order of its index, and its videos that have none."""

    name: str
    """Of the set."""
    set_fingerprint: str
    """SHA-256 of the set's indexes."""
    checkpoint: str
    """Fingerprint of the model."""
    frames: pa.Table
    """A row a frame, by ``SCHEMA`` or ``CLIP_SCHEMA``: ``score`` is the fake probability, ``logit`` fake
    minus real."""
    undetected: tuple[Undetected, ...] = ()

    def __post_init__(self) -> None:
        """Raises DfdetError for scores or logits that are not finite, or labels other than 0 and 1."""
        schema = CLIP_SCHEMA if self.has_clips else SCHEMA
        table = self.frames.cast(schema).unify_dictionaries().combine_chunks().replace_schema_metadata(None)
        object.__setattr__(self, "frames", table)
        for column in ("score", "logit", *(("clip_score", "clip_logit") if self.has_clips else ())):
            checked(self.column("label"), self.column(column))

    @property
    def has_clips(self) -> bool:
        """Whether there are scores of clips."""
        return "clip_score" in self.frames.column_names

    @classmethod
    def of(
        cls,
        name: str,
        index: Index,
        ids: ArrayLike,
        scores: ArrayLike,
        logits: ArrayLike,
        clip_scores: ArrayLike | None = None,
        clip_logits: ArrayLike | None = None,
        *,
        checkpoint: str,
    ) -> Scored:
        """Joins scores to what the index knows of their samples.

        Args:
            name: The set's name.
            ids: Samples scored, each once and in any order ``[n]``.
            scores: Fake probabilities ``[n]`` (0 to 1).
            logits: Fake minus real logits ``[n]``.
            clip_scores: Fake probabilities of each sample's clip ``[n]``, where there are any.
            clip_logits: Their fake minus real logits ``[n]``.
            checkpoint: Fingerprint of the model.

        Raises:
            DfdetError: Scores or logits that are not finite, or a sample scored twice.
        """
        rows = np.asarray(ids, np.int64)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        if repeats := int(np.sum(np.diff(rows) == 0)):
            raise DfdetError(f"{name}: {repeats} samples are scored twice; a sample is to count once")
        numbers = {"score": scores, "logit": logits, "clip_score": clip_scores, "clip_logit": clip_logits}
        table = pa.table(
            {
                "key": pa.array(index.keys(rows), pa.string()),
                "video": _text(index.video[rows], index.videos),
                "method": _text(index.method[rows], index.methods),
                "label": index.label[rows],
                "cluster": _text(index.cluster[rows], index.clusters),
                "frame": index.frame[rows],
            }
            | {k: np.asarray(v, np.float32)[order] for k, v in numbers.items() if v is not None}
        )
        missing = (*_unread(index, rows), *_without_face(index))
        return cls(name, index.digest, checkpoint, table, missing)

    def column(self, name: str) -> NDArray[np.generic]:
        """Numbers of a column ``[n]``."""
        return self.frames[name].to_numpy()

    def codes(self, name: str) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """A column of text as indices ``[n]`` into its texts."""
        array = self.frames[name].combine_chunks()
        return array.indices.to_numpy(zero_copy_only=False), tuple(array.dictionary.to_pylist())

    def write(self, path: Path) -> None:
        """Writes one Parquet file, whole or not at all, at full precision.

        Names and undetected videos are JSON in the schema's metadata.

        Raises:
            OSError: The disk is full or not writable; an old file is intact.
        """
        head = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "set_fingerprint": self.set_fingerprint,
            "checkpoint": self.checkpoint,
            "undetected": [asdict(video) for video in self.undetected],
        }
        buffer = io.BytesIO()
        pq.write_table(self.frames.replace_schema_metadata({_METADATA: json.dumps(head)}), buffer)
        write_bytes_atomic(path, buffer.getvalue())


def read(path: Path) -> Scored:
    """Reads what :meth:`Scored.write` wrote.

    Raises:
        InputError: The file is missing, damaged, or holds no scores.
    """
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        head = json.loads(table.schema.metadata[_METADATA])
        if (version := head["format_version"]) != FORMAT_VERSION:
            raise ValueError(f"format {version}, not {FORMAT_VERSION}")
        undetected = tuple(Undetected(**video) for video in head["undetected"])
        return Scored(head["name"], head["set_fingerprint"], head["checkpoint"], table, undetected)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, DfdetError) as error:
        raise InputError(
            f"{path}: no scores can be read ({str(error).splitlines()[0]}); evaluate the checkpoint again"
        ) from error


def same_checkpoint(sets: Sequence[Scored]) -> str:
    """The fingerprint that all sets share.

    Raises:
        InputError: There is no set, or they are of several checkpoints.
    """
    if len(found := {scored.checkpoint for scored in sets}) != 1:
        raise InputError(f"scores of {len(found)} checkpoints: summarise those of one at a time")
    return found.pop()


def pool(sets: Sequence[Scored], name: str = POOLED) -> Scored:
    """All sets' videos as one set; a video of several sets counts once, in the first that scored it.

    Raises:
        InputError: As :func:`same_checkpoint`.
    """
    checkpoint = same_checkpoint(sets)
    seen: set[str] = set()
    tables, repeated = [], 0
    for scored in sets:
        codes, videos = scored.codes("video")
        fresh = np.array([video not in seen for video in videos], bool)
        repeated += int(np.sum(~fresh))
        tables.append(scored.frames.filter(pa.array(fresh[codes] if len(codes) else [], pa.bool_())))
        seen.update(videos)
    if repeated:
        logger.warning("%d videos are in several sets: %s counts each once", repeated, name)
    missing = _each_once((video for scored in sets for video in scored.undetected), seen)
    digest = hashlib.sha256("\n".join(scored.set_fingerprint for scored in sets).encode()).hexdigest()
    return Scored(name, digest, checkpoint, pa.concat_tables(tables), missing)


def _text(codes: NDArray[np.integer], names: Sequence[str]) -> pa.Array:
    """Only names that occur, so that a table equals itself after a file."""
    array = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names, pa.string()))
    return array.cast(pa.string()).dictionary_encode()


def _unread(index: Index, rows: NDArray[np.int64]) -> tuple[Undetected, ...]:
    """Videos with faces of which no frame was scored, since none could be read."""
    videos, first = np.unique(index.video, return_index=True)
    return tuple(
        Undetected(
            index.videos[index.video[row]],
            int(index.label[row]),
            index.methods[index.method[row]],
            index.clusters[index.cluster[row]],
            "no frame could be read",
        )
        for row in first[~np.isin(videos, index.video[rows])].tolist()
    )


def _without_face(index: Index) -> tuple[Undetected, ...]:
    """The index's failures, in the clusters of the scored videos of their persons or groups."""
    failed = (
        Undetected(
            failure.video,
            failure.label,
            decode_part(failure.video.split("/")[1]),
            cluster,
            failure.reason,
        )
        for failure, cluster in zip(index.failures, failure_clusters(index.failures), strict=True)
    )
    return _each_once(failed, set(index.videos))


def _each_once(undetected: Iterable[Undetected], scored: set[str]) -> tuple[Undetected, ...]:
    """Videos that have no scores elsewhere, the first of each name."""
    found: dict[str, Undetected] = {}
    for video in undetected:
        if video.video not in scored:
            found.setdefault(video.video, video)
    return tuple(found.values())
