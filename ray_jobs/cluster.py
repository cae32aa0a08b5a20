"""Joining or starting Ray, and whether a run fits on it."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from dfdet import paths
from dfdet.config import Config, Engine, Run
from dfdet.config_checks import usable_workers
from dfdet.errors import ConfigError, DfdetError
from dfdet.hang.progress import group_timeout_s
from ray_jobs.growth import START_TIMEOUT_S, grown, growth
from shards.places import local_folder

logger = logging.getLogger(__name__)

START_TIMEOUT, ELASTIC_START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
"""Elastic workers wait less: Ray counts a lost node for some seconds more, and then decides anew."""

COLLECTIVE_TIMEOUT = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"

QUIET = {
    # workers print through our own log; these are Ray's own warnings and watchers
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # how often the controller looks at its workers (seconds): 2 by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # how often the notices of node drains are read (seconds): 5 by default
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    # a worker group that cannot be placed, or ranks that report unequally, must not hang for ever
    START_TIMEOUT: "120",
    COLLECTIVE_TIMEOUT: str(int(group_timeout_s(Engine().hang_timeout_s))),
    # a driver under `uv run` would start its workers through uv again
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's actor that tells workers of drained nodes; a local Ray has no node to drain."""

LOCAL_PATIENCE_S, JOINED_PATIENCE_S = 20.0, 50.0
"""How long Ray may be silent. A Ray that was joined may come back (its head can be restarted), but
60 s after losing it Ray ends the driver's process, without a word of ours."""


CONNECT_TIMEOUT_S = 5.0


class RayLostError(DfdetError):
    """Ray itself is gone: its head, or the daemon of the driver's node."""


def in_ray_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def joins_cluster() -> bool:
    """Whether there is a cluster to join rather than a local one to start."""
    return in_ray_job() or bool(os.environ.get("RAY_ADDRESS"))


def connect(config: Config) -> bool:
    """Joins the cluster that the environment names, or starts a local Ray; gives whether CUDA is used.

    Raises:
        ConfigError: The run asks for more workers, CPUs or GPUs than there are.
    """
    check_local(config)
    # after the watchdogs of the workers, which tell more
    os.environ.setdefault(COLLECTIVE_TIMEOUT, str(int(group_timeout_s(config.engine.hang_timeout_s))))
    if not isinstance(config.run.workers, int):
        os.environ.setdefault(START_TIMEOUT, ELASTIC_START_TIMEOUT_S)
    elif growth():
        os.environ.setdefault(START_TIMEOUT, START_TIMEOUT_S)
    cuda = check_resources(config, join_or_start())
    tell_of_growth(config, cuda=cuda)
    return cuda


def tell_of_growth(config: Config, *, cuda: bool) -> None:
    """Says so where the run waits for nodes that are still to come."""
    import ray

    needs = _needs(config.run, ("CPU", "GPU") if cuda else ("CPU",))
    now = room(needs, ray.cluster_resources())
    if now < config.run.fewest_workers:
        print(
            f"run.workers={config.run.fewest_workers}: room for {now} now; waiting for nodes, which come by"
            " demand (`ray status` tells)",
            flush=True,
        )


def join_or_start() -> dict[str, float]:
    """Joins the cluster that the environment names, or starts a local Ray.

    Returns:
        Its resources: those that there are, or that may come by demand.

    Raises:
        RayLostError: There is no such cluster.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(PREEMPTION_WATCHER, "1" if joins_cluster() else "0")
    # without compiled bytecode each Ray process compiles everything again: 11 to 17 s, not 4 to 9
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    import ray

    if joins_cluster():
        check_answers(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise no_ray(os.environ.get("RAY_ADDRESS", "auto"), " ".join(str(error).split())[:200]) from error
    else:
        ray.init(
            address="local",
            num_cpus=logical_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
        )
    return resources()


def check_answers(address: str) -> None:
    """Asks whether anything listens at ``HOST:PORT``: Ray itself looks for its head for minutes.

    Raises:
        RayLostError: Nothing does. Other forms of an address, as ``auto``, are Ray's to judge.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise no_ray(address, error.strerror or str(error)) from error


def no_ray(address: str, cause: str) -> RayLostError:
    """The error of an address where there is no cluster."""
    return RayLostError(
        f"RAY_ADDRESS={address}: no Ray answers there ({cause}); start its head with ray start --head --port"
        " PORT, or unset RAY_ADDRESS to use this machine"
    )


def resources() -> dict[str, float]:
    """Of the cluster that this process has joined: those that there are, or that may come by demand."""
    import ray

    now: dict[str, float] = ray.cluster_resources()
    return grown(now) if joins_cluster() else now


def settings() -> dict[str, str]:
    """Ray's settings in this process, for those of ours that in turn start workers, on any node."""
    return {name: os.environ[name] for name in (*QUIET, PREEMPTION_WATCHER) if name in os.environ}


def check_local(config: Config) -> None:
    """Refuses, without starting Ray, a run that this machine is too small for.

    Raises:
        ConfigError: As :func:`connect`; nothing where there is a cluster to join, which only Ray knows.
    """
    if not joins_cluster():
        check_resources(config, local_resources())


def local_resources() -> dict[str, float]:
    """What a Ray of this machine alone has."""
    import torch

    return {"CPU": float(logical_cpus()), "GPU": float(torch.cuda.device_count())}


def check_resources(config: Config, available: dict[str, float]) -> bool:
    """Whether the run uses CUDA, given what there is; refuses what does not fit.

    Raises:
        ConfigError: With the arithmetic and what would fit.
    """
    run = config.run
    cuda = wants_cuda(run.device, available)
    kinds = ("CPU", "GPU") if cuda else ("CPU",)
    check_fits(run, available, kinds)
    fits = min(int(available.get(kind, 0.0) / need) for kind, need in _needs(run, kinds).items())
    if usable_workers(config, fits) is None:
        raise ConfigError(
            f"run.workers={list(_ends(run))}: there is room for {fits}, but no count from"
            f" {run.fewest_workers} to {fits} divides data.global_batch={config.data.global_batch}"
            + (f" in whole {_units(config)}" if config.data.unit_size > 1 else "")
            + "; lower the first of --run.workers, or join a larger cluster"
        )
    return cuda


def _units(config: Config) -> str:
    return "clips" if config.data.sampling == "clip" else "pairs"


def wants_cuda(device: str, available: dict[str, float]) -> bool:
    """Whether ``auto``, ``cpu`` or ``cuda`` means CUDA, given the cluster's resources."""
    return device == "cuda" or (device == "auto" and available.get("GPU", 0.0) >= 1)


def room(needs: dict[str, float], available: dict[str, float]) -> int:
    """How many of what takes ``needs`` of each kind there is room for."""
    return min(math.floor(available.get(kind, 0.0) / need + 1e-9) for kind, need in needs.items())


def logical_cpus() -> int:
    """CPUs that this process may use (containers and affinity counted)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_fits(run: Run, available: dict[str, float], kinds: tuple[str, ...]) -> None:
    """Refuses what would wait for resources for ever: the fewest workers must fit.

    Raises:
        ConfigError: With the arithmetic and what would fit.
    """
    fewest, elastic = run.fewest_workers, not isinstance(run.workers, int)
    for kind, need in _needs(run, kinds).items():
        have = available.get(kind, 0.0)
        if fewest * need <= have:
            continue
        remedies = []
        if have >= need:
            high = f" {run.most_workers}" if elastic else ""
            remedies.append(f"--run.workers {int(have / need)}{high}")
        if kind == "GPU":
            remedies.append("--run.device cpu")
        elif share := math.floor(100 * have / fewest) / 100:
            remedies.append(f"--run.cpus_per_worker {share:g}")
        remedy = f"set {' or '.join(remedies)}" if remedies else "join a larger cluster"
        shown = list(_ends(run)) if elastic else run.workers
        raise ConfigError(
            f"run.workers={shown}: {fewest} x {need:g} {kind} = {fewest * need:g}, but Ray has"
            f" {have:g} {kind}; {remedy}"
        )


def _needs(run: Run, kinds: tuple[str, ...]) -> dict[str, float]:
    """What one worker takes of each kind."""
    return {kind: {"CPU": run.cpus_per_worker, "GPU": 1.0}[kind] for kind in kinds}


def _ends(run: Run) -> tuple[int, int]:
    return run.fewest_workers, run.most_workers


class Pulse:
    """Whether Ray still answers: a thread asks its head about the driver's node.

    Ray alone is no help here: without its head it ends the process after 60 s, and without the node's
    daemon a call waits for ever.
    """

    def __init__(self, patience_s: float) -> None:
        import ray

        self.patience_s = patience_s
        self._node = ray.get_runtime_context().get_node_id()
        self._answered, self._dead = threading.Event(), threading.Event()
        self._silent_s = 0.0
        threading.Thread(target=self._ask, name="ray-pulse", daemon=True).start()

    def _ask(self) -> None:
        import ray

        while not self._dead.wait(1.0):
            try:
                nodes = ray.nodes()
            except Exception as error:  # noqa: BLE001 - whatever Ray raises is no answer; patience decides
                logger.debug("Ray gave no list of its nodes: %s", error)
                continue
            if any(node["NodeID"] == self._node and not node["Alive"] for node in nodes):
                self._dead.set()
            self._answered.set()

    def check(self, waited_s: float) -> None:
        """Counts the time that the caller has waited since its last call.

        Time is what the caller waited, not what a clock says: a process that was suspended goes on.

        Raises:
            RayLostError: Ray is gone.
        """
        self._silent_s = 0.0 if self._answered.is_set() else self._silent_s + waited_s
        self._answered.clear()
        if self._dead.is_set() or self._silent_s > self.patience_s:
            cause = "says that this node is dead" if self._dead.is_set() else "no longer answers"
            raise RayLostError(
                f"Ray {cause}: its processes were killed or its node was lost; give the same --run.name"
                " again to go on from the newest checkpoint"
            )


def home() -> Path | None:
    """The folder that relative paths lie in; None for the working folder.

    In a Ray job that is a temporary copy which goes away with the job, so relative paths lie in
    ``~/dfdet`` (or ``DFDET_HOME``) there.
    """
    folder = os.environ.get("DFDET_HOME")
    if folder is None and in_ray_job():
        return Path.home() / "dfdet"
    return Path(folder) if folder else None


def absolute(path: str) -> str:
    """A path that means the same in every process: absolute against :func:`home`; URLs as they are.

    Raises:
        ShardSetError: A URL holds a user or password.
    """
    return paths.absolute(path, home())


def input_file(path: str) -> str:
    """A file that the driver alone reads: a job may have brought it along, in its working folder.

    What is not there, and URLs, as :func:`absolute` has it.
    """
    brought = Path(path)
    return os.path.normpath(brought.absolute()) if brought.exists() else absolute(path)


def with_config_file(argv: Sequence[str]) -> list[str]:
    """The arguments, with the path of ``--config FILE`` as :func:`input_file` has it."""
    args = [part for word in argv for part in (word.split("=", 1) if word[:9] == "--config=" else [word])]
    place = args.index("--config") + 1 if "--config" in args else len(args)
    if place < len(args) and args[place] and not args[place].startswith("-"):
        args[place] = input_file(args[place])
    return args


def absolute_out(path: str) -> str:
    """As :func:`absolute`, of a folder to write to, which is no URL.

    Raises:
        ConfigError: It is one.
    """
    return absolute(str(local_folder(path)))


def absolute_source(checkpoint: str) -> str:
    """As :func:`absolute`, of a checkpoint; ``hf:`` names as they are."""
    return checkpoint if checkpoint.startswith("hf:") else absolute(checkpoint)
