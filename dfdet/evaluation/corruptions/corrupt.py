"""Applies a corruption of the robustness grid to a batch of crops, before the model's resize."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet.data.augment import jpeg
from dfdet.data.decode import Pixels
from dfdet.data.prepare import pillow_resize
from dfdet.errors import DfdetError
from dfdet.evaluation.corruptions.filters import filter_batched
from dfdet.evaluation.corruptions.grid import Corruption
from dfdet.evaluation.corruptions.noise import add_noise


def corrupt(
    images: Tensor, sizes: Tensor, corruption: Corruption, ids: NDArray[np.int64], seed: int, threads: int
) -> tuple[Tensor, Tensor]:
    """Corrupts each crop by itself, whatever its batch, rank and place there.

    JPEG is Pillow's to the bit (4:2:0, libjpeg's slow DCT), and so is the resize; a crop that is smaller
    than its target is enlarged, as in GenD's runs. The blur is torchvision's, and on an accelerator the
    CPU's, but for single levels where the two round differently (1 value in 10,000, measured).

    Args:
        images: [b, S, S, 3] uint8 RGB as :class:`dfdet.data.loader.Batch` has them, on any device (best on
            the CPU for JPEG); they stay as they are.
        sizes: [b] sides of the crops (pixels).
        corruption: What to do.
        ids: [b] sample ids, for the noise.
        seed: Seed of the noise.
        threads: CPU threads, at least 1, for all but the noise; on an accelerator for JPEG only.

    Returns:
        Images [b, T, T, 3] uint8 with zeros outside of the crops, and their sizes [b]; T is S, or the
        side of a resize. A clean corruption gives the arguments themselves.
    """
    if corruption.clean:
        return images, sizes
    resized = corruption.kind == "resize"
    after = torch.full_like(sizes, int(corruption.level)) if resized else sizes
    if corruption.kind == "noise":
        return add_noise(images, sizes, corruption.level, ids, seed), after
    if corruption.kind == "jpeg" or images.device.type == "cpu":
        return _on_threads(images, sizes, corruption, threads), after
    return filter_batched(images, sizes, corruption), after


def check_changes(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], corruption: Corruption
) -> None:
    """Checks that a corruption does something; the blur of GenD's code as committed does not.

    A resize may leave a batch whose crops all have its side already.

    Args:
        before: Images and sizes that went into :func:`corrupt`.
        after: What came out.
        corruption: What was done.

    Raises:
        DfdetError: Nothing changed in the whole batch.
    """
    images, sizes = before
    idle = corruption.kind == "resize" and bool((sizes == corruption.level).all())
    same = torch.equal(sizes, after[1]) and torch.equal(images, after[0])
    if same and not (idle or corruption.clean):
        raise DfdetError(
            f"corruption {corruption.name}: changes no pixel of a batch of {len(images)} crops, so its scores"
            " would be those of clean images; look whether the set's images are black or of one colour"
        )


def _on_threads(images: Tensor, sizes: Tensor, corruption: Corruption, threads: int) -> Tensor:
    """A new [b, T, T, 3] tensor on the images' device."""
    source, sides = images.numpy(force=True), sizes.tolist()
    side = int(corruption.level) if corruption.kind == "resize" else images.shape[1]
    out = np.zeros((len(source), side, side, 3), np.uint8)
    function = _function(corruption)

    def work(row: int) -> None:
        result = function(source[row, : sides[row], : sides[row]])
        out[row, : len(result), : len(result)] = result

    with ThreadPoolExecutor(threads, thread_name_prefix="dfdet-corrupt") as pool:
        list(pool.map(work, range(len(source))))
    return torch.from_numpy(out).to(images.device)


def _function(corruption: Corruption) -> Callable[[Pixels], Pixels]:
    """What is done to one crop [s, s, 3]; all of it releases the interpreter lock."""
    level = corruption.level
    if corruption.kind == "jpeg":
        return partial(jpeg, quality=int(level))
    if corruption.kind == "blur":
        return partial(_blurred, kernel_px=corruption.kernel_px, sigma_px=level)
    return partial(pillow_resize, side=int(level), filter_name=corruption.filter)


def _blurred(image: Pixels, kernel_px: int, sigma_px: float) -> Pixels:
    # In float32: cv2's 8-bit blur is up to 2 levels from torchvision's in 22 % of values (19, 3 on noise).
    kernel = (kernel_px, kernel_px)
    values = cv2.GaussianBlur(image.astype(np.float32), kernel, sigma_px, borderType=cv2.BORDER_REFLECT_101)
    return np.rint(values).astype(np.uint8)
