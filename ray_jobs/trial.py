"""What a Ray Tune trial runs: the runs of one setting, one seed after another, each a full training."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from dfdet.config import Config, from_dict
from dfdet.errors import DfdetError, RunFolderError
from dfdet.runs.runfolder import ClaimStatus, RunFolder
from dfdet.runs.runlog import JsonLog, RunLog, log_to
from dfdet.sweep.sweeper import STOP
from ray_jobs import failures
from ray_jobs.leftovers import free_leftovers

logger = logging.getLogger(__name__)

CLAIM_PATIENCE_S = 150.0
"""How long a run folder may still be held by a trial whose driver has died, or whose node was cut off
(seconds): the processes of such a node live on for a minute, and a heartbeat counts for another."""

FAILURE = "failure"
"""Of a report to Tune: why no run of the setting could be trained."""


def train_setting(args: dict[str, Any]) -> None:
    """Trains the setting's runs in turn, up to one that fails; those that are finished are passed over.

    What came of a run lies in its folder. An exception leaves here only where a new attempt may help.

    Args:
        args: ``configs`` (dumped, one a seed), ``cuda``, ``driver``, the folder of the sweep's driver, and
            ``settings``, those of Ray in that driver: a process on another node has them from nowhere else.
    """
    from ray import tune

    os.environ.update(args["settings"])
    try:
        _train_all(args)
    except DfdetError as error:
        tune.report({FAILURE: str(error)})


def _train_all(args: dict[str, Any]) -> None:
    free_leftovers()
    for number, tree in enumerate(args["configs"]):
        config = from_dict(tree)
        folder, status = claim(config, time.monotonic() + CLAIM_PATIENCE_S)
        if status == "finished":
            continue
        try:
            if (Path(args["driver"]) / STOP).exists() or not _train(config, folder, number, args["cuda"]):
                return
        finally:
            folder.release()


def claim(config: Config, until: float) -> tuple[RunFolder, ClaimStatus]:
    """Takes a run folder; waits while another process holds it, up to a time of the monotonic clock."""
    while True:
        try:
            return RunFolder.claim(config.run.storage, str(config.run.name), config)
        except RunFolderError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def _train(config: Config, folder: RunFolder, number: int, cuda: bool) -> bool:
    """Whether the run came to its end; False where it failed or was asked to stop."""
    from ray_jobs import trainer

    failures.forget(folder)
    log_to([RunLog(folder.log_txt), JsonLog(folder.path, "trial")])
    failure = trainer.fit(config, folder, cuda=cuda, callbacks=[_forward(number)], in_sweep=True)
    ended = failures.ending(folder, config, failure)
    if ended.status == "failed":
        failures.keep(folder, ended.message, failure)
    return ended.status == "finished"


def _forward(number: int) -> Any:
    """Hands the first worker's reports to Tune, each with the number of its run."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Forward(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            super().after_report(run_context, [metrics[0] | {"run_number": number}], checkpoint)

    return Forward()
