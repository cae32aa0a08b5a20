"""Floating-point operations that a step needs, and the most that a device does in a second.

Their ratio to the time is the step's model FLOPs utilisation (MFU, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dfdet.model.detector import Detector, Precision

MEASURE_S = 0.15
"""How long an unknown device is measured (seconds)."""
TERA = 1e12

DATA_SHEETS: tuple[tuple[str, dict[Precision, float]], ...] = (
    ("B200", {"bf16": 2250, "fp32": 75}),
    ("GH200", {"bf16": 989.4, "fp32": 66.9}),
    ("H200", {"bf16": 989.4, "fp32": 66.9}),
    ("H100 PCIe", {"bf16": 756, "fp32": 51.2}),
    ("H100 NVL", {"bf16": 835, "fp32": 60}),
    ("H100", {"bf16": 989.4, "fp32": 66.9}),
    ("A100", {"bf16": 312, "fp32": 19.5}),
    ("L40S", {"bf16": 362, "fp32": 91.6}),
    ("L40", {"bf16": 181, "fp32": 90.5}),
    ("L4", {"bf16": 121, "fp32": 30.3}),
    ("A40", {"bf16": 149.7, "fp32": 37.4}),
    ("A30", {"bf16": 165, "fp32": 10.3}),
    ("A10G", {"bf16": 70, "fp32": 35}),
    ("A10", {"bf16": 125, "fp32": 31.2}),
    ("V100", {"fp32": 15.7}),
    ("T4", {"fp32": 8.1}),
)
"""TFLOP/s of NVIDIA's data sheets, dense, by part of the device's name, the first that fits: bf16 of the
tensor cores (V100 and T4 have none in bf16), fp32 without TF32, as torch multiplies by default."""


@dataclass(frozen=True)
class Flops:
    """FLOPs an image, of matrix products and convolutions in the tower."""

    forward: float
    backward: float
    """Gradients that the tuning mode needs: LN-tuning none of frozen weights, a probe none at all."""

    @property
    def step(self) -> float:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Peak:
    """The most that a device does of a precision."""

    flops_per_s: float
    origin: str
    """``data sheet (NAME)`` or ``measured``."""


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution of a step."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    """Its arguments; tensors have shape and strides, but no data."""
    flops: int


@dataclass(frozen=True)
class Products:
    """All of a step's, in order."""

    forward: list[Product]
    backward: list[Product]

    @property
    def flops(self) -> int:
        """Of all together."""
        return sum(product.flops for product in self.forward + self.backward)


def count(detector: Detector) -> Flops:
    """FLOPs of one image, counted without computing and without side effects, below a second.

    Recomputation by gradient checkpointing does not count; the head's few thousand are left out.
    """
    products = trace(detector, batch=1)
    forward, backward = (sum(p.flops for p in part) for part in (products.forward, products.backward))
    return Flops(float(forward), float(backward))


def trace(detector: Detector, batch: int) -> Products:
    """The products of the tower's forward and of the backward that its trainable parameters need."""
    side = detector.preprocess.image_size
    # The plain attention: in the fused ones' backward the scores are computed again.
    with FakeTensorMode(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        tower = _without_data(detector.tower)
        if switch := getattr(tower, "set_grad_checkpointing", None):
            switch(False)
        with _Recorder() as forward:
            features = tower(torch.empty(batch, 3, side, side))
        with _Recorder() as backward:
            if features.requires_grad:
                features.sum().backward()
    return Products(forward.products, backward.products)


def _without_data(module: nn.Module) -> nn.Module:
    """A copy with float32 parameters and buffers without data; what trains, trains in it too."""
    memo: dict[int, Tensor] = {}
    for parameter in module.parameters():
        empty = torch.empty(parameter.shape, dtype=torch.float32)
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    memo |= {id(buffer): torch.empty(buffer.shape, dtype=buffer.dtype) for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


class _Recorder(TorchDispatchMode):
    """Keeps each operation that torch has a FLOP formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.products.append(Product(func, args, formula(*args, **(kwargs or {}), out_val=out)))
        return out


def peak(device: torch.device, precision: Precision) -> Peak:
    """Most FLOP/s of a device: its data sheet's, else that of a plain matrix product, measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if found := data_sheet(name, precision):
            return found
    return Peak(_measure(device, torch.bfloat16 if precision == "bf16" else torch.float32), "measured")


def data_sheet(name: str, precision: Precision) -> Peak | None:
    """The data sheet's figure for a device name, as ``NVIDIA H200``; None for others."""
    words = name.replace("-", " ") + " "
    for part, figures in DATA_SHEETS:
        if f" {part} " in f" {words}":
            figure = figures.get(precision)
            return Peak(figure * TERA, f"data sheet ({part})") if figure else None
    return None


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some matrix products."""
    rows, inner, columns = (512, 1024, 2048) if device.type == "cpu" else (4096, 4096, 4096)
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype)
    torch.mm(left, right.T)
    best, until = float("inf"), time.perf_counter() + MEASURE_S
    while time.perf_counter() < until:
        synchronize(device)
        begun = time.perf_counter()
        torch.mm(left, right.T)
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * inner * columns / best


def synchronize(device: torch.device) -> None:
    """Waits for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
