"""The floor of a step: its matrix products and convolutions alone, one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfdet.training.flops import Product, Products

SETS = 3
"""Sets of operands that products of equal shapes take in turn, so that no cache holds their weights."""

Operands = tuple[Any, ...]


def replay(products: Products, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A function that computes all products on random operands of their shapes and strides."""
    sets: dict[str, list[Operands]] = {}
    uses: Counter[str] = Counter()
    calls: list[tuple[Callable[..., Any], Operands]] = []
    for product in products.forward + products.backward:
        key = _signature(product)
        if key not in sets:
            sets[key] = [_operands(product, dtype, device) for _ in range(SETS)]
        calls.append((product.operation, sets[key][uses[key] % SETS]))
        uses[key] += 1

    def run() -> None:
        with torch.no_grad():
            for operation, operands in calls:
                operation(*operands)

    return run


def _signature(product: Product) -> str:
    shown = [(tuple(a.shape), a.stride()) if isinstance(a, Tensor) else a for a in product.args]
    return f"{product.operation} {shown}"


def _operands(product: Product, dtype: torch.dtype, device: torch.device) -> Operands:
    return tuple(_random(a, dtype, device) if isinstance(a, Tensor) else a for a in product.args)


def _random(like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    return torch.randn(numbers, device=device).to(dtype).as_strided(like.shape, like.stride())
