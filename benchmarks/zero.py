"""ZeRO stages 0 to 3 for a tiny trainable set, against a plain loop without DeepSpeed, at 2 ranks.

The plain loop has the same detector, loss, gathering and fused AdamW, and reduces its gradients as one
flat tensor. All are in one pair of processes and run in turn, in rounds; the table has medians, of wall
time and of CPU time (which does not count waiting for a core), and what each keeps on a rank besides
activations: weights (of the tower too), and the optimizer's moments and masters.

    python benchmarks/zero.py [--backbone ViT-B-32-quickgelu] [--batch 4] [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from dfdet.benchmark.group import Group
from dfdet.benchmark.weak import noise_batch
from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.model.detector import build_detector
from dfdet.training.clock import StepClock
from dfdet.training.engine import TrainEngine, param_groups
from dfdet.training.schedule import Layout, batch_layout
from dfdet.training.step_loss import Passes, StepLoss, micro_batches

CPU = torch.device("cpu")
STEPS = 3
"""Steps in a round."""
VARIANTS = ("plain", "0", "1", "2", "3")
Step = Callable[[Batch], Any]
Kept = tuple[int, int]
"""Bytes of weights, and of moments and masters."""


def config_of(backbone: str, batch: int, world: int) -> Config:
    """LN-tuning with global pairwise terms."""
    return Config().replace(
        {
            "model.backbone": backbone,
            "model.pretrained": None,
            "model.image_size": 96 if backbone == "tiny" else 224,
            "data.global_batch": batch * world,
            "loss.uniformity": 0.5,
            "loss.alignment": 0.1,
        }
    )


def plain_step(config: Config, layout: Layout, rank: int) -> tuple[Step, Kept]:
    """A step of torch alone, and what it keeps."""
    detector = build_detector(config)
    optimizer = torch.optim.AdamW(param_groups(detector), lr=1e-4, fused=True)
    loss = StepLoss(config, layout, rank, StepClock(CPU))
    passes = Passes(
        features=lambda micro: detector(detector.to_input(micro.images, micro.sizes)),
        cached=lambda micro: detector(detector.to_input(micro.images, micro.sizes)),
        backward=lambda total: total.backward(),
        head=detector.head,
    )
    trained = list(detector.trainable().values())

    def step(batch: Batch) -> None:
        loss.run(list(micro_batches(batch, layout, CPU)), passes, (0, 0, 0))
        gradients = [p.grad for p in trained if p.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= layout.world
        torch._foreach_copy_(gradients, list(_unflatten_dense_tensors(flat, gradients)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, (storage_bytes(list(detector.parameters())), 2 * 4 * sum(p.numel() for p in trained))


def zero_step(config: Config, layout: Layout, rank: int, stage: int) -> tuple[Step, Kept]:
    """A step of the engine, and what it keeps."""
    detector = build_detector(config)
    engine = TrainEngine(detector, config.replace({"engine.zero_stage": stage}), layout, rank, CPU)
    weights = [getattr(p, "ds_tensor", p).data for p in detector.parameters()]  # ZeRO 3 keeps a part
    masters = [] if stage == 0 else engine._stepped()
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    kept = storage_bytes(weights), storage_bytes([*masters, *moments])
    return lambda batch: engine.step(batch, (0, 0, 0), 1e-4), kept


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def member(rank: int, world: int, backbone: str, batch: int) -> Callable[..., Any]:
    """Builds all variants; the work runs one of them, or tells what it keeps."""
    config = config_of(backbone, batch, world)
    layout = batch_layout(config.data.global_batch, world, None)
    made = {"plain": plain_step(config, layout, rank)}
    made |= {stage: zero_step(config, layout, rank, int(stage)) for stage in VARIANTS[1:]}
    data = noise_batch(layout.per_rank, config.model.image_size)

    def work(name: str) -> tuple[float, float, Kept]:
        step, kept = made[name]
        dist.barrier()
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            step(data)
        return (time.perf_counter() - begun) / STEPS, (time.process_time() - cpu) / STEPS, kept

    return work


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32-quickgelu")
    parser.add_argument("--batch", type=int, default=4, help="samples of a rank")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with Group(2, member, options.backbone, options.batch) as group:
        for name in VARIANTS:
            group.call(name)  # the first steps allocate
        rounds = [{name: group.call(name) for name in VARIANTS} for _ in range(options.rounds)]
    print(
        f"{options.backbone}, 2 ranks x {options.batch} samples, medians of {options.rounds} rounds in turn"
    )
    print(
        f"{'stage':>6}{'step ms':>9}{'to plain':>10}{'CPU ms':>8}{'to plain':>10}{'weights MiB':>13}"
        f"{'optimizer KiB':>15}"
    )
    walls, cpus = (
        {name: median(max(answer[kind] for answer in one[name]) for one in rounds) for name in VARIANTS}
        for kind in (0, 1)
    )
    for name in VARIANTS:
        weights, state = rounds[0][name][0][2]
        print(
            f"{name:>6}{walls[name] * 1e3:>9.1f}{walls[name] / walls['plain']:>10.2f}{cpus[name] * 1e3:>8.1f}"
            f"{cpus[name] / cpus['plain']:>10.2f}{weights / 2**20:>13.1f}{state / 2**10:>15.1f}"
        )


if __name__ == "__main__":
    main()
