"""Flags of an evaluation."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from dfdet.config import Data, Section, named_sets
from dfdet.evaluation.aggregate import aggregator

_DATA = Data()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Options(Section):
    """What is scored, how it is summed up, and on what it runs."""

    checkpoint: tuple[str, ...] = Field(min_length=1)
    """Checkpoint or run folders, published files or hf:OWNER/NAME; several are compared in pairs."""
    test: tuple[str, ...] = Field(min_length=1)
    """Sets to score, as NAME=SET.json."""
    val: tuple[str, ...] = Field((), max_length=1)
    """Set to fit threshold and temperature on, as NAME=SET.json; they are kept with the checkpoint. None:
    the ones that it has."""
    out: str | None = None
    """Folder of the result; one given again goes on. None: evaluations/<UTC time>."""
    aggregate: str = "mean"
    """Score of a video from those of its frames: mean, median, max, or topK as top3; temporal: the mean
    of its clips' scores, where the checkpoint has a temporal head."""
    robustness: tuple[str, ...] = ()
    """Corruptions to score under: all, a kind as jpeg, or one as jpeg-40."""
    crop_scale: float | None = Field(None, ge=1.0, le=4.0)
    """Margin of the crop as a multiple of the tight face; None: the checkpoint's own."""
    mix_crops: bool = False
    """Score sets whose faces were cut in another way than the checkpoint's."""
    pretrained: str | None = None
    """File of the tower's weights, where it is not where training had it."""
    resamples: int = Field(2000, ge=100)
    """Resamples of the intervals (resamples)."""
    seed: int = Field(0, ge=0)
    """Seed of resamples and of noise."""
    workers: int = Field(0, ge=0)
    """Scoring processes, one a GPU where there are GPUs; 0: as many as there is room for (processes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a worker; auto takes CUDA where the cluster has it."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved for a worker (logical CPUs)."""
    batch: int = Field(64, ge=1)
    """Samples in a batch; scores do not depend on the number of workers, but in their last digits on
    this (samples)."""
    on_damage: Literal["raise", "skip"] = "raise"
    """What to do with samples that cannot be read; those skipped are counted."""
    max_damaged: int = Field(100, ge=0)
    """Skipped samples of a set at which the evaluation ends (samples)."""
    cache_dir: str = _DATA.cache_dir
    """Folder for copies of remote shards."""
    cache_gib: float = Field(_DATA.cache_gib, gt=0)
    """Size that the copies are kept under (GiB)."""

    @field_validator("test", "val")
    @classmethod
    def _named(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            name, equals, path = entry.partition("=")
            if not (_NAME.fullmatch(name) and equals and path):
                raise ValueError(f"{entry!r}: give NAME=SET.json, as cdfv2=shards/cdfv2.json")
        if len(named_sets(entries)) < len(entries):
            raise ValueError("a name is given twice; give each set its own")
        if taken := {"pooled", "macro"} & set(named_sets(entries)):
            raise ValueError(f"the name {taken.pop()} is that of a sum over sets; give another")
        return entries

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            aggregator(name)
        except Exception as error:
            raise ValueError(str(error)) from error
        return name

    def data(self) -> Data:
        """What a loader takes of a config."""
        return Data(
            cache_dir=self.cache_dir,
            cache_gib=self.cache_gib,
            mix_crops=self.mix_crops,
            on_damage=self.on_damage,
            max_damaged=self.max_damaged,
        )
