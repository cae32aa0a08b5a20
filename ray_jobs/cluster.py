"""Joining or starting Ray, and whether a run fits on it."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from dfdet.config import Run
from dfdet.data.remote import is_url, refuse_secrets
from dfdet.errors import ConfigError

QUIET = {
    # workers print through our own log; these are Ray's own warnings and watchers
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # how often the controller looks at its workers (seconds): 2 by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # a worker group that cannot be placed, or ranks that report unequally, must not hang for ever
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    # a driver under `uv run` would start its workers through uv again
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def in_ray_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def joins_cluster() -> bool:
    """Whether there is a cluster to join rather than a local one to start."""
    return in_ray_job() or bool(os.environ.get("RAY_ADDRESS"))


def connect(run: Run) -> bool:
    """Joins the cluster that the environment names, or starts a local Ray; gives whether CUDA is used.

    Raises:
        ConfigError: The run asks for more workers, CPUs or GPUs than there are.
    """
    check_local(run)
    return check_resources(run, join_or_start())


def join_or_start() -> dict[str, float]:
    """Joins the cluster that the environment names, or starts a local Ray; gives its resources."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # without compiled bytecode each Ray process compiles everything again: 11 to 17 s, not 4 to 9
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    import ray

    if joins_cluster():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=logical_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
        )
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def check_local(run: Run) -> None:
    """Refuses, without starting Ray, a run that this machine is too small for.

    Raises:
        ConfigError: As :func:`connect`; nothing where there is a cluster to join, which only Ray knows.
    """
    if not joins_cluster():
        import torch

        check_resources(run, {"CPU": float(logical_cpus()), "GPU": float(torch.cuda.device_count())})


def check_resources(run: Run, available: dict[str, float]) -> bool:
    """Whether the run uses CUDA, given what there is; refuses what does not fit.

    Raises:
        ConfigError: With the arithmetic and what would fit.
    """
    cuda = run.device == "cuda" or (run.device == "auto" and available.get("GPU", 0) >= 1)
    check_fits(run, available, ("CPU", "GPU") if cuda else ("CPU",))
    return cuda


def logical_cpus() -> int:
    """CPUs that this process may use (containers and affinity counted)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_fits(run: Run, available: dict[str, float], kinds: tuple[str, ...]) -> None:
    """Refuses what would wait for resources for ever.

    Raises:
        ConfigError: With the arithmetic and what would fit.
    """
    needs = {"CPU": run.cpus_per_worker, "GPU": 1.0}
    for kind in kinds:
        have = available.get(kind, 0.0)
        asked = run.workers * needs[kind]
        if asked > have:
            remedies = []
            if have >= needs[kind]:
                remedies.append(f"--run.workers {int(have / needs[kind])}")
            if kind == "GPU":
                remedies.append("--run.device cpu")
            elif share := math.floor(100 * have / run.workers) / 100:
                remedies.append(f"--run.cpus_per_worker {share:g}")
            remedy = f"set {' or '.join(remedies)}" if remedies else "join a larger cluster"
            raise ConfigError(
                f"run.workers={run.workers}: x {needs[kind]:g} {kind} = {asked:g}, but Ray has"
                f" {have:g} {kind}; {remedy}"
            )


def absolute(path: str) -> str:
    """A path that means the same in every process: absolute against the working folder.

    In a Ray job the working folder is a temporary copy that goes away with the job, so relative
    paths lie in ``~/dfdet`` (or ``DFDET_HOME``) there. URLs stay as they are.

    Raises:
        ShardSetError: A URL holds a user or password.
    """
    if is_url(path):
        return refuse_secrets(path)
    home = os.environ.get("DFDET_HOME")
    if home is None and in_ray_job():
        home = str(Path.home() / "dfdet")
    return os.path.normpath(Path(home or Path.cwd()) / Path(path).expanduser())
