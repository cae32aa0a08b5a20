"""The same run twice: one seed for every generator, and no algorithm that varies from call to call.

What a run draws comes from hashes of (seed, epoch, position): order, pairs, augmentation, slerp; weights
are initialised under generators of their own that the same seed starts. The generators seeded here are
left for libraries. Equal topology (ranks, micro-batches, devices, threads) then gives equal bits.
Across topologies batches are equal, but sums are taken in another order: the first losses agree to
:data:`FP32_LOSS_TOLERANCE` or :data:`BF16_LOSS_TOLERANCE`, and drift apart slowly from there, as
rounding errors grow in any training.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dfdet.errors import ConfigError

FP32_LOSS_TOLERANCE = 1e-5
"""Between topologies, over the first steps, with ``engine.precision=fp32`` (relative)."""
BF16_LOSS_TOLERANCE = 1e-3
"""The same with bf16, measured 1e-4 at the third step (relative)."""
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""Settings with which cuBLAS adds in a fixed order; the first costs 24 MiB and no speed."""
NO_DETERMINISTIC_FORM = re.compile(r"(\S.*?) does not have a deterministic implementation")


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def enforce() -> None:
    """Makes torch choose deterministic algorithms, and raise where an operation has none.

    Attention is included: flash and memory-efficient backward passes then add in a fixed order, and
    cuDNN's, which cannot, is not chosen. TF32 stays as it is: it rounds, but always alike. Call it
    before anything is computed on a GPU.

    Raises:
        ConfigError: cuBLAS has been told to use workspaces with which its sums vary.
    """
    workspace = os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACES[0])
    if workspace not in FIXED_WORKSPACES:
        raise ConfigError(
            f"run.deterministic=True: {CUBLAS_WORKSPACE}={workspace} lets cuBLAS vary; unset it or set it"
            f" to {FIXED_WORKSPACES[0]}"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def explained() -> Iterator[None]:
    """Turns torch's error about an operation without a deterministic form into one clear line.

    Raises:
        ConfigError: Instead of that error.
    """
    try:
        yield
    except RuntimeError as error:
        found = NO_DETERMINISTIC_FORM.search(str(error))
        if found is None:
            raise
        raise ConfigError(
            f"run.deterministic=True: {found[1]} has no deterministic form on this device; set"
            " --run.deterministic False, or choose a model without it"
        ) from error
