"""Elastic workers: Ray's own policy, kept to the counts that divide the global batch.

Ray Train asks its scaling policy how many workers to start, and every few seconds whether to
resize the group. Ours rounds down with ``usable_workers``, leaves out nodes that are dead or being
drained, and has the workers save a checkpoint before a resize.

Ray has no public way to give a policy. Used of Ray 2.60's private names: the five imports below,
``DataParallelTrainer._initialize_and_run_controller``, which hands the policy to the controller, and
``ElasticScalingPolicy._count_possible_workers`` and ``._latest_monitor_time``.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.train.torch import TorchTrainer

from dfdet.config import Config
from dfdet.config_checks import usable_workers
from dfdet.errors import ConfigError, DfdetError
from dfdet.runs.runfolder import CONTROLLER, RunFolder, open_run
from dfdet.runs.runlog import JsonLog, RunLog, log_to
from ray_jobs.lean import LeanTrainer
from ray_jobs.notices import checkpoint_wanted, want_checkpoint

logger = logging.getLogger(__name__)


def unsupported(missing: object) -> ConfigError:
    """The error of a Ray without what is used here."""
    return ConfigError(
        f"run.workers: Ray {ray.__version__} has no {missing}, which a range of workers needs; give one"
        " number as --run.workers, or install ray 2.60"
    )


try:
    from ray.train.v2._internal.execution.preemption import _get_draining_nodes
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
        TrainAutoscalingCoordinatorClient,
    )
except ImportError as error:
    raise unsupported(error.name or error) from error

for _owner, _name in (
    (TorchTrainer, "_initialize_and_run_controller"),
    (ElasticScalingPolicy, "_count_possible_workers"),
):
    if not hasattr(_owner, _name):
        raise unsupported(f"{_owner.__name__}.{_name}")


class DividingPolicy(ElasticScalingPolicy):
    """Runs in Ray Train's controller; see the module's text.

    Args:
        scaling_config: Ray's, with the range of workers.
        config: Of the run.
        run: Its folder.
    """

    def __init__(self, scaling_config: Any, config: Config, run: RunFolder) -> None:
        super().__init__(scaling_config)
        self.config = config
        self._place = run.place  # a RunFolder holds locks, and cannot go to the controller's process
        self._saving = False

    def after_controller_start(self, train_run_context: Any) -> None:
        """Registers the run's wishes with Ray, and opens the log in the controller's process."""
        self.run = open_run(self._place, self.config.data.cache_dir, CONTROLLER)
        log_to([RunLog(self.run.log_txt), JsonLog(self.run.path, "controller")])
        super().after_controller_start(train_run_context)

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        usable = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(_get_draining_nodes())
        # Ray divides with //, by which .6 holds two workers of .3 but 1.2 only three
        available = {
            node: {kind: amount * (1 + 1e-9) for kind, amount in resources.items()}
            for node, resources in reserved_resources.items()
            if node in usable
        }
        return usable_workers(self.config, super()._count_possible_workers(available)) or 0

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Starts as many workers as there is room for; waits where there is room for too few."""
        self._saving = False
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            logger.info("room for %d workers", decision.num_workers)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Resizes where the room has changed, once the workers have saved a checkpoint.

        Only the steps after it, of the half second until Ray's next look, are done again.
        """
        if self._saving:
            if checkpoint_wanted(self.run) is not None:
                return NoopDecision()
            self._latest_monitor_time = float("-inf")  # decide anew, now: nodes may have come or gone
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision) or self._saving:
            self._saving = False
            return decision
        now, then = worker_group_state.num_workers, decision.num_workers
        try:
            want_checkpoint(self.run)
        except (OSError, DfdetError) as error:  # the storage is away: asked again at Ray's next look
            logger.warning("room for %d workers, but a checkpoint cannot be asked for (%s)", then, error)
            return NoopDecision()
        logger.info(
            "room for %d workers instead of %d: saving a checkpoint, then going on with them", then, now
        )
        self._saving = True
        return NoopDecision()


class ElasticTrainer(LeanTrainer):
    """A ``TorchTrainer`` under :class:`DividingPolicy`; takes the run's config and folder besides."""

    def __init__(self, *args: Any, config: Config, run: RunFolder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config, self._run = config, run

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        if "scaling_policy" not in kwargs:
            raise unsupported("scaling_policy of TorchTrainer._initialize_and_run_controller")
        policy = DividingPolicy(self.scaling_config, self._config, self._run)
        try:
            return super()._initialize_and_run_controller(  # type: ignore[misc]
                **(kwargs | {"scaling_policy": policy})
            )
        except ray.exceptions.RayActorError:
            # a dead controller's reservation would keep the next one waiting for three minutes
            run_id = self.train_run_context.run_id  # type: ignore[attr-defined]
            TrainAutoscalingCoordinatorClient(f"train-{run_id}").cancel_resource_request()
            raise
