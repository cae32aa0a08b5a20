"""Communication and weak scaling measured here: gloo groups of processes with one thread each.

What is compared runs in turn, in rounds; figures are medians. Processes that share a machine also
share its memory and caches, so the efficiency is no better than the machine is idle; the CPU time of a
step beside it does not count waiting for a core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from dfdet.benchmark.cost import FLOAT32, ScalingOptions, StepCost, step_cost
from dfdet.benchmark.group import Group
from dfdet.benchmark.links import BASE_S, Fabric, Link, Ranks, all_gather_s, all_reduce_s
from dfdet.config import Config
from dfdet.data.loader import Batch
from dfdet.model.detector import build_detector
from dfdet.training.engine import TrainEngine
from dfdet.training.gather import all_gather_rows
from dfdet.training.schedule import batch_layout

SMALLEST, LARGEST = 64, 4 << 20
"""Messages from which the link of this machine is fitted (bytes)."""
REPEATS = 20
"""Messages of a size in a round."""
STEPS = 2
"""Steps in a round."""
CPU = torch.device("cpu")
PIXELS = {"tiny": 96}
"""Side of the measured images, where it is not 224 (pixels)."""
Steps = Callable[[int], tuple[float, float]]


def config_of(options: ScalingOptions, world: int) -> Config:
    """The measured run: the same samples a worker for any number of workers."""
    return Config().replace(
        {
            "model.backbone": options.weak_backbone,
            "model.pretrained": None,
            "model.image_size": PIXELS.get(options.weak_backbone, 224),
            "data.global_batch": options.weak_batch * world,
            "loss.uniformity": 0.5,
            "loss.alignment": 0.1,
        }
    )


def noise_batch(samples: int, pixels: int) -> Batch:
    """Random crops of both classes."""
    rng = np.random.default_rng(0)
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (samples, pixels, pixels, 3), np.uint8)),
        sizes=torch.full((samples,), pixels),
        labels=torch.arange(samples) % 2,
        valid=torch.ones(samples, dtype=torch.bool),
        ids=np.arange(samples),
    )


def stepper(rank: int, world: int, options: ScalingOptions) -> Steps:
    """A worker of a real engine: called, it takes so many steps; seconds and CPU seconds a step."""
    config = config_of(options, world)
    layout = batch_layout(config.data.global_batch, world, None)
    engine = TrainEngine(build_detector(config), config, layout, rank, CPU)
    batch = noise_batch(layout.per_rank, config.model.image_size)

    def steps(count: int) -> tuple[float, float]:
        begun, cpu = time.perf_counter(), time.process_time()
        for number in range(count):
            engine.step(batch, (0, 0, number), 1e-4)
        return (time.perf_counter() - begun) / count, (time.process_time() - cpu) / count

    return steps


def messenger(rank: int, world: int) -> Callable[[str, int], float]:
    """A worker that sends messages of one size through one collective; seconds a message."""

    def send(name: str, size: int) -> float:
        message = torch.ones(size // FLOAT32)
        send_one = all_gather_rows if name == "all-gather" else dist.all_reduce
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(REPEATS):
            send_one(message)
        return (time.perf_counter() - begun) / REPEATS

    return send


def fit_link(small: tuple[float, float], large: tuple[float, float]) -> Ranks:
    """Two ranks on the link that explains two all-reduces, each (bytes, seconds), exactly.

    A ring of two takes 2 steps and moves the message once.
    """
    (size_a, time_a), (size_b, time_b) = small, large
    bytes_per_s = (size_b - size_a) / (time_b - time_a)
    latency_s = (time_a - size_a / bytes_per_s - BASE_S) / 2
    return Ranks(Fabric(Link("gloo, this machine", latency_s, bytes_per_s, "fitted"), _NONE, 1), 2)


_NONE = Link("none", 0.0, float("inf"), "a single node")


def communication_lines(options: ScalingOptions, cost: StepCost) -> list[str]:
    """Each message size measured between 2 processes, and the model's time for it."""
    gather, reduce = cost.gather_bytes(options.batch_per_gpu), cost.reduce_bytes
    cases = [("all-reduce", size) for size in sorted({SMALLEST, 16 << 10, reduce, LARGEST})]
    cases += [("all-gather", size) for size in sorted({SMALLEST, 16 << 10, gather})]
    with Group(2, messenger) as group:
        rounds = [{case: max(group.call(*case)) for case in cases} for _ in range(options.rounds)]
    found = {case: median(one[case] for one in rounds) for case in cases}
    pair = fit_link(*((size, found["all-reduce", size]) for size in (SMALLEST, LARGEST)))
    link = pair.fabric.inside
    lines = [
        f"gloo between 2 processes here: {link.latency_s * 1e6:.0f} us a step, {link.bytes_per_s / 1e9:.2f}"
        " GB/s (fitted to the smallest and the largest all-reduce)",
        f"{'':12}{'kB':>9}{'measured ms':>13}{'model ms':>10}{'ratio':>7}",
    ]
    for (name, size), seconds in found.items():
        model_s = (all_reduce_s if name == "all-reduce" else all_gather_s)(size, pair)
        lines.append(
            f"{name:12}{size / 1e3:>9.1f}{seconds * 1e3:>13.3f}{model_s * 1e3:>10.3f}"
            f"{seconds / model_s:>7.2f}"
        )
    return lines


def weak_lines(options: ScalingOptions) -> list[str]:
    """Steps of 1 and of 2 workers with the same samples each."""
    with Group(1, stepper, options) as one, Group(2, stepper, options) as two:
        groups = {1: one, 2: two}
        for group in groups.values():
            group.call(STEPS)  # the first steps allocate
        rounds = [{world: each.call(STEPS) for world, each in groups.items()} for _ in range(options.rounds)]
    times = {
        world: [median(max(answer[kind] for answer in one[world]) for one in rounds) for kind in (0, 1)]
        for world in groups
    }
    lines = [
        f"{options.weak_backbone}, {options.weak_batch} samples a worker, one thread each, medians of"
        f" {options.rounds} rounds in turn",
        f"{'workers':>7}{'step ms':>10}{'CPU ms':>9}{'images/s':>10}{'efficiency':>12}{'by CPU time':>13}",
    ]
    for world, (wall, cpu) in times.items():
        lines.append(
            f"{world:>7}{wall * 1e3:>10.1f}{cpu * 1e3:>9.1f}{options.weak_batch * world / wall:>10.1f}"
            f"{times[1][0] / wall:>12.1%}{times[1][1] / cpu:>13.1%}"
        )
    return lines


def measured_lines(options: ScalingOptions) -> list[str]:
    """Both tables."""
    return [*communication_lines(options, step_cost(options)), "", *weak_lines(options)]
