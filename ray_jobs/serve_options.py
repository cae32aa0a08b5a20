"""What a user asks of the server, checked before Ray starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfdet.errors import ConfigError, InputError
from dfdet.prediction.verdict import Rule, rule_of
from dfdet.serving.bundle import Bundle, Precision, open_bundle
from dfdet.serving.limits import Limits
from ray_jobs.cluster import absolute, joins_cluster, local_resources, wants_cuda
from ray_jobs.own_recipe import Chosen, CutFlags, cutting
from ray_jobs.serve_faces import Setting
from shards.media.decode import MAX_PIXELS

TOKEN = "DFDET_TOKEN"  # noqa: S105 - the name of a variable
MOST_THREADS = 8
"""Threads of a replica of the model, where none are asked for."""


class Serve(CutFlags):
    """Serve an exported bundle over HTTP."""

    bundle: Path
    """Folder that export.py wrote."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every address of this machine."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen at; 0: any that is free."""
    replicas: int | tuple[int, int] = 1
    """Processes that find faces, and as many of the model; LOW HIGH: by load."""
    max_batch: int = Field(32, ge=1, le=1024)
    """Crops of one forward pass, of several requests together; 1: no batches."""
    batch_wait_ms: float = Field(5.0, ge=0, le=1000)
    """How long a crop waits for others (ms)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model: ONNX Runtime on cpu, torch on cuda."""
    precision: Precision = "float32"
    """Which of the bundle's graphs."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a replica of the model; None: what the others leave."""
    token_file: Path | None = None
    """File with the token that clients must send; else that of the variable DFDET_TOKEN; else none."""

    max_bytes: int = Field(Limits.max_bytes, ge=1 << 10)
    """Largest body (bytes)."""
    max_pixels: int = Field(Limits.max_pixels, ge=1 << 10, le=MAX_PIXELS)
    """Largest image or frame (pixels)."""
    max_seconds: float = Field(Limits.max_seconds, gt=0, le=86400)
    """Longest video (s)."""
    timeout_s: float = Field(Limits.timeout_s, gt=0, le=3600)
    """Time for an upload, and once more for its answer (s)."""
    max_queue: int = Field(Limits.max_queue, ge=1, le=10000)
    """Requests under way, those that wait counted; more are told to come again."""

    @property
    def low_high(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def chosen(self) -> Chosen:
        """What concerns the cut; the detector stays on the CPU, where its replicas are."""
        names = set(Chosen.__dataclass_fields__) - {"device"}
        return Chosen(**{name: getattr(self, name) for name in names}, device="cpu")

    @property
    def limits(self) -> Limits:
        """What a request may cost."""
        names = set(Limits.__dataclass_fields__) & set(Serve.model_fields)
        return Limits(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Share:
    """What a replica takes of the cluster."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Checked:
    """All that can be known before Ray starts."""

    options: Serve
    bundle: Bundle
    setting: Setting
    rule: Rule
    remarks: tuple[str, ...]
    token: str | None

    @property
    def aggregate(self) -> str:
        """Score of a person from those of the frames: as the threshold was fitted."""
        return self.bundle.threshold.aggregate if self.bundle.threshold else "mean"


def check(options: Serve) -> Checked:
    """Reads the bundle, opens the detector once, reads the token.

    Raises:
        InputError: Anything that would fail later.
    """
    options = with_absolute_paths(options)
    low, high = options.low_high
    if not 1 <= low <= high:
        raise ConfigError(f"--replicas {low} {high}: give a count from 1, or LOW HIGH with LOW <= HIGH")
    bundle = open_bundle(options.bundle)
    if not joins_cluster():
        resources = local_resources()
        device = device_of(options, resources)
        plan(options, resources, device)
        bundle.check(bundle.graph(options.precision, device))
    cut = cutting(bundle.crop, bundle.crop_scale, options.chosen)
    setting = Setting(bundle, options.limits, None if options.crops else cut.recipe, cut.detector)
    aggregate = bundle.threshold.aggregate if bundle.threshold else "mean"
    rule = rule_of(bundle.threshold, None, aggregate)
    return Checked(options, bundle, setting, rule, cut.remarks, read_token(options))


def with_absolute_paths(options: Serve) -> Serve:
    """The options with every path absolute."""
    paths = {name: getattr(options, name) for name in ("bundle", "weights", "token_file")}
    found = {name: Path(absolute(str(path))) for name, path in paths.items() if path is not None}
    return options.model_copy(update=found)


def device_of(options: Serve, resources: dict[str, float]) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        ConfigError: CUDA is asked for where there is none.
    """
    if options.device == "cuda" and resources.get("GPU", 0) < 1:
        raise ConfigError("--device cuda: there is no GPU; use --device cpu, or join a cluster with GPUs")
    return "cuda" if wants_cuda(options.device, resources) else "cpu"


def read_token(options: Serve) -> str | None:
    """The token, from its file or the environment.

    Raises:
        InputError: The file cannot be read, or the token is too short to be one.
    """
    if options.token_file is None:
        token = os.environ.get(TOKEN, "").strip()
    else:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"--token_file {options.token_file}: cannot be read ({error})") from error
        if not token:
            raise InputError(f"--token_file {options.token_file}: is empty; put a token in it")
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(
            "the token is shorter than 16 characters, or not plain ASCII; make one: openssl rand -hex 32"
        )
    return token or None


def plan(options: Serve, resources: dict[str, float], device: str) -> tuple[Share, Share, int]:
    """What a replica that finds faces and one of the model take, and the threads of the latter.

    One that finds faces takes a CPU, one of the model as many as it has threads; where that is more than
    there is, they share.

    Raises:
        ConfigError: More threads than CPUs.
    """
    most, cpus = options.low_high[1], max(1.0, resources.get("CPU", 1.0))
    if options.threads and options.threads > cpus:
        raise ConfigError(f"--threads {options.threads}: Ray has {cpus:g} CPUs; give at most as many")
    threads = options.threads or max(1, min(MOST_THREADS, int(cpus // most) - 1))
    part = min(1.0, cpus / (most * (1 + threads)))
    gpus = min(1.0, resources.get("GPU", 0.0) / most) if device == "cuda" else 0.0
    return Share(_floor(part)), Share(_floor(part * threads), _floor(gpus)), threads


def _floor(amount: float) -> float:
    """Down to Ray's smallest part."""
    return int(amount * 10000) / 10000
