"""A step's time on many GPUs, as arithmetic on plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dfdet.benchmark.links import Fabric, Ranks, all_gather_s, all_reduce_s
from dfdet.config import Config
from dfdet.model.detector import build_detector

FLOAT32 = 4
"""Bytes of a float32."""
EXTRA_COLUMNS = 2
"""Label and mask, which travel with the features (columns)."""


@dataclass(frozen=True)
class ScalingOptions:
    """Options of the ``scaling`` benchmark."""

    step_ms: float = 87.7
    """Step of one GPU at the batch per GPU, as `benchmark step` measures it. The default is 128 images at
    1,460 images/s, the goal for ViT-L/14 on an H200 (milliseconds)."""
    backbone: str = "ViT-L-14-quickgelu"
    """Tower: gives the width of the features and, with `tuning`, the number of gradients."""
    tuning: str = "ln"
    """What trains: probe, ln, lora or full."""
    batch_per_gpu: int = 128
    """Samples of one GPU in a step (samples)."""
    strong: bool = False
    """Keep the global batch at `batch_per_gpu` and divide it, instead of keeping the batch per GPU."""
    gpus_per_node: int = 8
    """GPUs that share a node's network cards (GPUs)."""
    loss_tflops: float = 67.0
    """Speed of the loss, which is float32: H100's and H200's data sheet (TFLOP/s)."""
    weak: bool = False
    """Also measure here: gloo's messages against the model, and 1 worker against 2 at equal batch each."""
    weak_backbone: str = "tiny"
    """Tower of the measured workers."""
    weak_batch: int = 16
    """Samples of one measured worker (samples)."""
    rounds: int = 9
    """Rounds that are measured in turn; the table has medians (rounds)."""


@dataclass(frozen=True)
class StepCost:
    """What a step costs one GPU and the network."""

    compute_s: float
    """Step of one GPU alone at ``batch`` samples, its loss included (seconds)."""
    batch: int
    """Samples of it (samples)."""
    features: int
    """Width of the features that are gathered (columns)."""
    trainable: int
    """Gradients that are reduced (elements)."""
    loss_flops_per_s: float
    """Speed of the loss (FLOP/s)."""

    def gather_bytes(self, samples: int) -> int:
        """Message of one rank with so many samples: features, labels, mask."""
        return samples * (self.features + EXTRA_COLUMNS) * FLOAT32

    @property
    def reduce_bytes(self) -> int:
        """Message of the gradients."""
        return self.trainable * FLOAT32

    def loss_s(self, samples: int) -> float:
        """The whole loss over a global batch, which every rank computes."""
        return loss_flops(samples, self.features) / self.loss_flops_per_s


def loss_flops(samples: int, features: int) -> float:
    """FLOPs of the loss forward and backward: the Gram matrix of uniformity, and the head.

    The matrix is 2 N^2 D forward and twice that backward; the head of two classes 2 N D 2, thrice. All
    else is O(N D), or elementwise over [N, N].
    """
    return 3 * 2.0 * samples * features * (samples + 2)


@dataclass(frozen=True)
class Prediction:
    """One GPU count on one fabric."""

    gpus: int
    gather_s: float
    reduce_s: float
    loss_s: float
    """Of the global batch (seconds)."""
    step_s: float
    efficiency: float
    """Images a GPU-second relative to one GPU alone."""


def predict(cost: StepCost, fabric: Fabric, gpus: int, strong: bool = False) -> Prediction:
    """The step on ``gpus`` GPUs, nothing overlapped and no rank slower than another.

    Args:
        strong: The global batch stays that of one GPU; compute is taken as proportional to the batch.
    """
    share = gpus if strong else 1
    batch = cost.batch // share
    ranks = Ranks(fabric, gpus)
    gather, reduce = all_gather_s(cost.gather_bytes(batch), ranks), all_reduce_s(cost.reduce_bytes, ranks)
    alone, loss = cost.loss_s(cost.batch), cost.loss_s(batch * gpus)
    step = (cost.compute_s - alone) / share + loss + gather + reduce
    return Prediction(gpus, gather, reduce, loss, step, cost.compute_s / (share * step))


def gpu_counts(most: int = 256, divides: int | None = None) -> list[int]:
    """1, 2, 4 ... GPUs; those that leave each at least one of ``divides`` samples, equally many."""
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return [count for count in counts if divides is None or divides % count == 0]


def step_cost(options: ScalingOptions) -> StepCost:
    """The numbers of a step of the options' model, which is built without weights."""
    config = Config().replace(
        {"model.backbone": options.backbone, "model.pretrained": None, "tuning.mode": options.tuning}
    )
    device = torch.device("cpu" if options.backbone == "tiny" else "meta")  # tiny's stem needs values
    with device:
        detector = build_detector(config, device=device)
    return StepCost(
        compute_s=options.step_ms / 1000,
        batch=options.batch_per_gpu,
        features=int(detector.tower.output_dim),  # type: ignore[arg-type]
        trainable=sum(p.numel() for p in detector.trainable().values()),
        loss_flops_per_s=options.loss_tflops * 1e12,
    )
