"""The configuration tree: one frozen object that says all there is to say of a run.

Every field has a unit and a range; combinations are checked when the object is made, before any
process starts. The dotted path of a field (``loss.uniformity``) is its command-line flag, its name
in a sweep and in every record. Neither torch nor Ray is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dfdet.errors import ConfigError

PAIRED_MODES = ("pair", "rotate")

Workers = int | tuple[int, int]
Tracker = Literal["wandb", "mlflow"]


class Section(BaseModel):
    """A frozen group of fields that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Run(Section):
    """Where the run lives and what it runs on."""

    recipe: str = "demo"
    """Recipe that this configuration was made from (for the record)."""
    storage: str = "runs"
    """Folder that holds the run folders."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Run folder's name; a name given again resumes. None: <recipe>-<UTC time>."""
    workers: Workers = 1
    """Training processes, one a GPU where there are GPUs; LOW HIGH: as many as there is room for,
    changing with the cluster (processes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a worker; auto takes CUDA where the cluster has it."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved for a worker, and its compute threads rounded down, at least 1 (logical CPUs)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random: weights, order, augmentation, slerp."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after failures (times)."""
    deterministic: bool = False
    """Refuse algorithms whose result varies from call to call, at some cost of speed on GPUs."""
    track: tuple[Tracker, ...] = ()
    """Where metrics go besides the run folder, which always has TensorBoard's files."""
    track_project: str = Field("dfdet", min_length=1)
    """Project of W&B, or experiment of MLflow."""

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: Workers) -> Workers:
        low, high = (workers, workers) if isinstance(workers, int) else workers
        if low < 1:
            raise ValueError(f"run.workers={low}: input should be greater than or equal to 1")
        if low > high:
            raise ValueError(f"run.workers=[{low}, {high}]: the low end is above the high end; swap them")
        return workers

    @property
    def fewest_workers(self) -> int:
        """Workers that the run needs at least (processes)."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that the run takes at most (processes)."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Augment(Section):
    """Training augmentation of GenD (arXiv 2508.06248), in this order: flip, affine, blur, jitter, JPEG."""

    strength: float = Field(1.0, ge=0.0, le=2.0)
    """Multiplies ranges and probabilities below; 0 switches augmentation off (factor)."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip; not scaled by strength (0 to 1)."""
    rotate_degrees: float = Field(10.0, ge=0, le=90)
    """Largest rotation either way (degrees)."""
    translate: float = Field(0.1, ge=0, le=0.5)
    """Largest shift either way, of the side (fraction)."""
    scale: float = Field(0.1, ge=0, lt=0.5)
    """Largest change of size either way (fraction)."""
    blur: float = Field(0.1, ge=0, le=1)
    """Probability of a Gaussian blur, kernel 7, sigma .1 to 2 pixels (0 to 1)."""
    brightness: float = Field(0.1, ge=0, lt=1)
    """Largest change of brightness either way (fraction)."""
    contrast: float = Field(0.1, ge=0, lt=1)
    """Largest change of contrast either way (fraction)."""
    jpeg_quality: int = Field(40, ge=1, le=100)
    """Lowest JPEG quality; drawn up to 100; 100 switches JPEG off (quality)."""
    jpeg_first: bool = False
    """JPEG before all others, which then run batched on the device; differs from the published order."""


class Data(Section):
    """Shard sets and how batches are made of them."""

    train: tuple[str, ...] = ()
    """Manifests of the training sets (paths or URLs of .json)."""
    val: tuple[str, ...] = ()
    """Validation sets, each NAME=SET.json; the first chooses the best checkpoint (name=path)."""
    test: tuple[str, ...] = ()
    """Test sets, each NAME=SET.json; evaluated once, at the end (name=path)."""
    sampling: Literal["single", "pair", "rotate", "clip"] = "single"
    """An epoch: single, every sample once; pair, every fake next to a real of its group; rotate, every
    real next to one fake, the method rotating by epoch; clip, every sample once, by clips of a video."""
    clip_frames: int = Field(8, ge=2, le=1024)
    """Frames of a clip, spread over its video; those that a clip lacks are padding, which costs as much
    time as frames do: take a divisor of the frames of a video (frames)."""
    global_batch: int = Field(128, ge=1)
    """Samples in an optimizer step over all workers (samples)."""
    block_shards: int = Field(0, ge=0)
    """Shuffle within blocks of this many shards; 0 shuffles over all. Remote sets: 8, since shuffling
    over all fetches each shard hundreds of times (shards)."""
    lanes: int = Field(1, ge=1)
    """Runs of the order that are interleaved, so that a rank touches mostly its own shards. Remote sets:
    4 a worker; blocks x lanes must fit into half of the node's cache (runs)."""
    crop_scale: float = Field(1.3, ge=1.0, le=4.0)
    """Margin of the training crop as a multiple of the tight face, cut from the stored crop (factor)."""
    augment: Augment = Augment()
    """Training augmentation."""
    mix_crops: bool = False
    """Allow sets of different crop recipes in one run."""
    on_damage: Literal["raise", "skip"] = "raise"
    """A sample that fails its checksum or does not decode: raise, or mask it and count it."""
    max_damaged: int = Field(100, ge=0)
    """Damaged samples a worker may skip before the run stops (samples)."""
    threads: int = Field(0, ge=0)
    """Decode threads a worker; 0: one for each of its CPUs (threads)."""
    prefetch: int = Field(4, ge=1, le=64)
    """Batches decoded ahead of use (batches)."""
    resize: Literal["device", "pillow"] = "device"
    """Resize batched on the device, or by Pillow on the decode threads, bit-equal to open_clip's own."""
    cache_dir: str = "~/.cache/dfdet/shards"
    """Folder of a node's copies of remote shards, shared by its workers."""
    cache_gib: float = Field(100.0, gt=0)
    """Size that the copies are kept below; those in use stay (GiB)."""
    retries: int = Field(5, ge=0, le=100)
    """Times that a failed transfer is tried again, with growing pauses (times)."""

    @property
    def unit_size(self) -> int:
        """Samples of a batch that stay together on one worker: 2 of a pair, or all of a clip."""
        if self.sampling == "clip":
            return self.clip_frames
        return 2 if self.sampling in PAIRED_MODES else 1


class Model(Section):
    """Vision tower and head."""

    backbone: str = "ViT-L-14-quickgelu"
    """Tower: `tiny`, an open_clip model name, or a timm name as timm/NAME."""
    pretrained: str | None = "openai"
    """Weights: an open_clip tag, a file (safetensors or weights-only torch), `timm`, or none."""
    image_size: int = Field(224, ge=16, le=1024)
    """Side of the model's input (pixels)."""
    normalize: bool = True
    """L2-normalise features before the head; the margin heads and pairwise losses always do."""
    head: Literal["linear", "cosine", "angular"] = "linear"
    """linear with bias; cosine (CosFace) or angular (ArcFace) margin on normalised weights."""
    margin: float = Field(0.0, ge=0.0, le=1.0)
    """Margin of the head: cosine units, or radians for angular."""
    scale: float = Field(16.0, gt=0, le=256)
    """Scale of a margin head's cosines (factor)."""
    temporal: bool = False
    """Pool the frames of a clip by attention, for a score of the clip beside those of its frames."""


class Tuning(Section):
    """Which parameters of the tower train."""

    mode: Literal["probe", "ln", "full", "lora"] = "ln"
    """probe: none; ln: all normalisation layers; full: all; lora: low-rank updates of the linears."""
    lora_rank: int = Field(8, ge=1, le=256)
    """Rank of the LoRA updates (dimensions)."""
    lora_alpha: float = Field(16.0, gt=0)
    """LoRA updates are scaled by alpha / rank (factor)."""


class Loss(Section):
    """Weights of the terms: total = ce CE + alignment A + uniformity U (arXiv 2503.19683), and those of
    clips where the model is temporal."""

    ce: float = Field(1.0, ge=0)
    """Weight of cross-entropy (factor)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of cross-entropy (fraction)."""
    alignment: float = Field(0.0, ge=0)
    """Weight of label-aware alignment (factor)."""
    uniformity: float = Field(0.0, ge=0)
    """Weight of uniformity (factor)."""
    clip: float = Field(1.0, ge=0)
    """Weight of the clips' cross-entropy; counts with model.temporal only (factor)."""
    consistency: float = Field(0.0, ge=0)
    """Weight of the squared distance between a frame's fake probability and its clip's (factor)."""
    slerp: bool = False
    """Replace each training feature by a slerp towards another of its class."""
    slerp_low: float = Field(0.0, ge=0, le=1)
    """Smallest slerp position (fraction of the arc)."""
    slerp_high: float = Field(1.0, ge=0, le=1)
    """Largest slerp position (fraction of the arc)."""
    pairwise_scope: Literal["global", "step", "rank"] = "global"
    """What pairwise terms and slerp see: the global batch, one micro-step of all ranks, or one of
    the rank's own (as public multi-GPU code has it)."""

    @property
    def pairwise(self) -> bool:
        """Whether a sample's loss depends on others of its batch."""
        return self.slerp or self.alignment > 0 or self.uniformity > 0


class Optim(Section):
    """AdamW and its schedule."""

    lr: float = Field(3e-4, gt=0, le=1)
    """Peak learning rate (per step)."""
    min_lr: float = Field(1e-5, ge=0, le=1)
    """Learning rate at the end of a cosine (per step)."""
    head_lr_factor: float = Field(1.0, gt=0, le=1000)
    """Learning rate of the head relative to the tower's (factor)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates (fractions)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (per step and learning rate)."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest gradient norm; 0 does not clip (norm)."""
    epochs: int = Field(10, ge=1)
    """Passes over the plan (epochs)."""
    schedule: Literal["cosine", "restarts", "constant"] = "cosine"
    """cosine over all epochs; restarts: cosine over each `restart_epochs`; constant."""
    restart_epochs: float = Field(10.0, gt=0)
    """Length of a warm-restart cycle (epochs)."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Linear warm-up from 0 (epochs)."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations without a better one; 0 never (evaluations)."""


class Engine(Section):
    """How steps are computed; nothing here but `precision` changes what is learned."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: matrix products in bfloat16; norms, head, residual stream and masters in float32."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage (stage)."""
    micro_batch: int | None = Field(None, ge=1)
    """Largest batch of one forward on a worker; accumulation follows. None: no accumulation (samples)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 1.4 times the time."""
    compile: bool = False
    """torch.compile of the tower's blocks; falls back to eager, and says so, where it fails."""
    dry_batch: bool = True
    """One forward and backward on a full-size batch before the first step, to fail early."""
    max_bad_steps: int = Field(1, ge=1)
    """Non-finite steps (all skipped) at which the run stops at the next log step (steps)."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines; a stop is noticed then too (steps)."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints within an epoch; every epoch end has one (steps)."""
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints kept; an older one is what a damaged newest falls back to (checkpoints)."""
    keep_best: int = Field(1, ge=1)
    """Best checkpoints kept, by the metric that chooses them (checkpoints)."""
    storage_patience_s: float = Field(600.0, ge=0)
    """How long a write to a full or unreachable storage is tried again before the run stops (seconds)."""
    hang_timeout_s: float = Field(1800.0, ge=0)
    """How long a step, an evaluation batch or a wait for data may take before the workers are ended, with
    their stacks written, and started again; 30 minutes at least for the first of each; 0: for ever
    (seconds)."""


class Eval(Section):
    """Validation during and after training."""

    every_epochs: int = Field(1, ge=1)
    """Epochs between validations; the last epoch always has one (epochs)."""
    batch: int = Field(256, ge=1)
    """Samples in an evaluation batch of one worker; where those are clips, as many whole clips as it
    holds, at least one (samples)."""


class Config(Section):
    """A whole run."""

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    tuning: Tuning = Tuning()
    loss: Loss = Loss()
    optim: Optim = Optim()
    engine: Engine = Engine()
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        from dfdet.config_checks import combination_problems  # which needs the types above

        problems = [problem for problem in combination_problems(self) if problem]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_json(self) -> str:
        """All fields as indented JSON; :func:`from_json` gives an equal config."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def replace(self, values: dict[str, Any]) -> Config:
        """A copy with dotted paths set, as ``{"optim.lr": 3e-4}``; checked like a new one.

        Raises:
            ConfigError: An unknown path, a bad value or an impossible combination.
        """
        tree = self.model_dump()
        for path, value in values.items():
            *parents, leaf = path.split(".")
            node: Any = tree
            for part in parents:
                node = node.get(part) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise ConfigError(f"{path}: no such field; see --help for all fields")
            node[leaf] = value
        return from_dict(tree)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a dumped config by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def named_sets(entries: tuple[str, ...]) -> dict[str, str]:
    """``("demo=a.json",)`` as ``{"demo": "a.json"}``."""
    return {name: path for name, _, path in (entry.partition("=") for entry in entries)}


def from_dict(tree: dict[str, Any]) -> Config:
    """Builds a config from nested dicts.

    Raises:
        ConfigError: One line that names path, value, cause and remedy.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def from_json(path: Path) -> Config:
    """Reads a config that :meth:`Config.to_json` wrote.

    Raises:
        ConfigError: The file is missing, no JSON, or no valid config.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--config {path}: cannot be read as JSON ({error}); give a run's config.json"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {path}: holds no configuration; give a run's config.json")
    return from_dict(tree)


def explain(error: ValidationError, prefix: str = "") -> str:
    """One line for all problems of a validation error, each with path, value and cause."""
    lines = []
    for item in error.errors():
        path = ".".join([*([prefix] if prefix else []), *map(str, item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: no such field; see --help for all fields")
        elif not path or item["type"] == "value_error":
            lines.append(message)
        else:
            lines.append(f"{path}={item['input']!r}: {message[0].lower()}{message[1:]}")
    return "; ".join(lines)
