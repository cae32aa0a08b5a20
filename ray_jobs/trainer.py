"""A config as a Ray ``TorchTrainer`` run, and what its end means."""

from __future__ import annotations

import logging
import time
from typing import Any

from dfdet.config import Config
from dfdet.runfolder import RunFolder
from ray_jobs.worker import train_worker

logger = logging.getLogger(__name__)


def torch_trainer(
    config: Config, folder: RunFolder, *, cuda: bool, callbacks: list[Any] | None = None
) -> Any:
    """The trainer of one run: workers, restarts and storage from the config.

    Checkpoints are ours (``dfdet.checkpoint``): they outlive Ray and any number of workers. So Ray's
    own storage holds little, under a name of its own for each call.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "folder": str(folder.path)},
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.run.workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": config.run.cpus_per_worker, **({"GPU": 1} if cuda else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder.path / "ray"),
            failure_config=FailureConfig(
                max_failures=config.run.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg]  # by default it never gives up
            ),
            callbacks=callbacks or [],
        ),
    )
