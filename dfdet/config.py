"""The configuration tree: one frozen object that says all there is to say of a run.

Every field has a unit and a range; combinations are checked when the object is made, before any
process starts. The dotted path of a field (``loss.uniformity``) is its command-line flag, its name
in a sweep and in every record. Neither torch nor Ray is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dfdet.errors import ConfigError

PAIRED_MODES = ("pair", "rotate")


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
    workers: int = Field(1, ge=1)
    """Training processes, one a GPU where there are GPUs (processes)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a worker; auto takes CUDA where the cluster has it."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved for a worker, and its compute threads rounded down, at least 1 (logical CPUs)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random: weights, order, augmentation, slerp."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after failures (times)."""


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
    sampling: Literal["single", "pair", "rotate"] = "single"
    """An epoch: single, every sample once; pair, every fake next to a real of its group; rotate,
    every real next to one fake, the method rotating by epoch."""
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


class Tuning(Section):
    """Which parameters of the tower train."""

    mode: Literal["probe", "ln", "full", "lora"] = "ln"
    """probe: none; ln: all normalisation layers; full: all; lora: low-rank updates of the linears."""
    lora_rank: int = Field(8, ge=1, le=256)
    """Rank of the LoRA updates (dimensions)."""
    lora_alpha: float = Field(16.0, gt=0)
    """LoRA updates are scaled by alpha / rank (factor)."""


class Loss(Section):
    """Weights of the terms: total = ce CE + alignment A + uniformity U (arXiv 2503.19683)."""

    ce: float = Field(1.0, ge=0)
    """Weight of cross-entropy (factor)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of cross-entropy (fraction)."""
    alignment: float = Field(0.0, ge=0)
    """Weight of label-aware alignment (factor)."""
    uniformity: float = Field(0.0, ge=0)
    """Weight of uniformity (factor)."""
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
    dry_batch: bool = True
    """One forward and backward on a full-size batch before the first step, to fail early."""
    max_bad_steps: int = Field(1, ge=1)
    """Non-finite steps (all skipped) at which the run stops at the next log step (steps)."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines; a stop is noticed then too (steps)."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints within an epoch; every epoch end has one (steps)."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints kept besides the best (checkpoints)."""


class Eval(Section):
    """Validation during and after training."""

    every_epochs: int = Field(1, ge=1)
    """Epochs between validations; the last epoch always has one (epochs)."""
    batch: int = Field(256, ge=1)
    """Samples in an evaluation batch of one worker (samples)."""


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


def combination_problems(config: Config) -> list[str | None]:
    """Fields that contradict each other, one line each with the remedy."""
    data, model, loss, optim = config.data, config.model, config.loss, config.optim
    unit = 2 if data.sampling in PAIRED_MODES else 1
    share = config.run.workers * unit
    low_batch = max(share, data.global_batch // share * share)
    return [
        f"data.global_batch={data.global_batch}: not divisible by run.workers={config.run.workers}"
        + (f" x {unit} (data.sampling={data.sampling} keeps pairs on one rank)" if unit > 1 else "")
        + f"; set --data.global_batch {low_batch}"
        if data.global_batch % share
        else None,
        f"model.margin={model.margin}: a linear head has no margin; set --model.head cosine or angular"
        if model.head == "linear" and model.margin
        else None,
        "loss.ce, loss.alignment and loss.uniformity are all 0: nothing to learn; set --loss.ce 1"
        if not (loss.ce or loss.alignment or loss.uniformity)
        else None,
        f"loss.slerp_low={loss.slerp_low}: above loss.slerp_high={loss.slerp_high}; swap them"
        if loss.slerp_low > loss.slerp_high
        else None,
        f"optim.min_lr={optim.min_lr}: above optim.lr={optim.lr}; set --optim.min_lr {optim.lr} or lower"
        if optim.min_lr > optim.lr and optim.schedule != "constant"
        else None,
        f"optim.warmup_epochs={optim.warmup_epochs}: not less than optim.epochs={optim.epochs};"
        " shorten the warm-up, as with --optim.warmup_epochs 0"
        if optim.warmup_epochs and optim.warmup_epochs >= optim.epochs
        else None,
        f"optim.betas={optim.betas}: each must be in [0, 1); set --optim.betas 0.9 0.999"
        if not all(0 <= beta < 1 for beta in optim.betas)
        else None,
        f"engine.micro_batch={config.engine.micro_batch}: smaller than a pair"
        f" (data.sampling={data.sampling}); set --engine.micro_batch {unit}"
        if (config.engine.micro_batch or unit) < unit
        else None,
        *(_named_set_problem("data.val", data.val)),
        *(_named_set_problem("data.test", data.test)),
    ]


def _named_set_problem(path: str, entries: tuple[str, ...]) -> list[str]:
    names = [entry.partition("=")[0] for entry in entries]
    problems = [
        f"{path}={entry!r}: write NAME=SET.json, with a name of letters, digits, - and _"
        for entry, name in zip(entries, names, strict=True)
        if "=" not in entry or not name.replace("-", "").replace("_", "").isalnum()
    ]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return problems + [f"{path}: the name {name!r} is given twice; name each set once" for name in repeated]


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
