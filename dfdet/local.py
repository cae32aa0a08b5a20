"""A run without Ray: one process, or the group that torchrun started.

All ranks parse the same command line; the first claims the folder, logs and records. They leave
together: a rank that fails says so in the folder before its connections close, so that the others,
who only see these close, stay silent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dfdet.checkpoints.saver import PeerFailedError
from dfdet.cli import parse
from dfdet.config import Config
from dfdet.config_checks import usable_workers
from dfdet.context import Group, LocalContext, join_group, text_from_first
from dfdet.data.sets import open_run_data
from dfdet.errors import ConfigError, DfdetError, RunFolderError, ShardSetError
from dfdet.hang.progress import group_timeout_s
from dfdet.hang.verdict import Hang, line
from dfdet.hang.watchdog import STACKS, Watchdog
from dfdet.interrupts import Interrupts
from dfdet.paths import missing_demo_sets, with_absolute_paths
from dfdet.recipes import DEMO_SHARDS
from dfdet.runs.atomic import to_json
from dfdet.runs.runfolder import FIRST_RANK, RunFolder, default_name, open_run
from dfdet.runs.runlog import JsonLog, RunLog, log_json, log_to
from dfdet.runs.summary import show_result

logger = logging.getLogger(__name__)

PROG = "python -m dfdet"
FAILURE = "failure.json"
"""The first failure of a group, in the run folder."""


def main(argv: Sequence[str], interrupts: Interrupts) -> int:
    """Runs the command line in this rank; gives the exit code (0, 1, 2, 130, 143).

    Raises:
        DfdetError: What this rank has to tell, and no other on its machine.
    """
    if os.environ.get("RANK", "0") == "0":
        log_to([logging.StreamHandler(sys.stdout)])
    try:
        config = prepare(parse(argv, PROG))
    except DfdetError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return error.exit_code  # as its neighbour tells
        raise
    group = join_group(config.run.device, group_timeout_s(config.engine.hang_timeout_s))
    folder, status, code = claim_together(config, group)
    if folder is None:
        return code
    if status == "finished":
        if group.rank == 0:
            logger.info("%s: already finished; its result:", folder.place)
            show_result(folder.read_result() or {}, folder.named(folder.result_json))
        folder.release()
        return 0
    config = config.replace({"run.name": folder.path.name})
    try:
        context = LocalContext(folder, config.run.device)
        with watched(config, context):
            code = train_claimed(config, context, interrupts)
        dist.destroy_process_group()
        return code
    except Exception as error:  # noqa: BLE001 - told once, by one rank
        return fail(error, folder, group)
    finally:
        folder.release()


# ---------------------------------------------------------------- before the group is joined


def prepare(config: Config) -> Config:
    """The config with absolute paths, a name and a device; refuses what cannot run here.

    Raises:
        ConfigError: Other workers than processes, or no CUDA.
        ShardSetError: The demo set is not built.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if problem := workers_problem(config, world):
        raise ConfigError(problem)
    config = with_absolute_paths(config)
    check_demo_is_built(config)
    return config.replace(
        {"run.device": device_of(config), "run.name": config.run.name or default_name(config.run.recipe)}
    )


def workers_problem(config: Config, world: int) -> str | None:
    """Why so many processes are not those of the config, with the remedy; None if they are."""
    if usable_workers(config, world) == world:
        return None
    run = config.run
    asked = run.workers if isinstance(run.workers, int) else list(run.workers)
    wanted = usable_workers(config, run.most_workers)
    here = "this is one process" if world == 1 else f"torchrun started {world} processes"
    return (
        f"run.workers={asked}: {here}; start as many, with torchrun --nproc_per_node {wanted} -m dfdet ...,"
        f" or set --run.workers {world}"
    )


def device_of(config: Config) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        ConfigError: There is no CUDA device, or none for this process.
    """
    count, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if config.run.device == "cpu" or (config.run.device == "auto" and not count):
        return "cpu"
    if local_rank >= count:
        raise ConfigError(
            f"run.device={config.run.device}: process {local_rank} of this machine has no GPU (there are"
            f" {count}); start fewer processes, or set --run.device cpu"
        )
    return "cuda"


def check_demo_is_built(config: Config) -> None:
    """Refuses a demo set that is not there, with the command that makes it.

    Raises:
        ShardSetError: As said.
    """
    for path in missing_demo_sets(config):
        raise ShardSetError(
            f"{path}: the demo set is not built; build it with: python -m shards demo --out {DEMO_SHARDS}"
        )


# ---------------------------------------------------------------- all ranks together


def claim_together(config: Config, group: Group) -> tuple[RunFolder | None, str, int]:
    """The run folder, claimed by the first rank, and its status; None and a code where it may not be.

    Raises:
        DfdetError: The first rank's: why not.
    """
    folder: RunFolder | None = None
    refused: DfdetError | None = None
    answer: dict[str, Any] = {}
    if group.rank == 0:
        try:
            check(config)
            folder, status = RunFolder.claim(config.run.storage, str(config.run.name), config, FIRST_RANK)
            answer = {"name": folder.path.name, "status": status}
            if status != "finished":
                folder.withdraw(FAILURE)
        except (DfdetError, OSError) as error:
            refused = error if isinstance(error, DfdetError) else RunFolderError(str(error))
            answer = {"code": refused.exit_code}
    answer = json.loads(text_from_first(json.dumps(answer), group))
    if refused is not None:
        raise refused
    if "code" in answer:
        return None, "refused", answer["code"]
    if folder is None:
        place = f"{config.run.storage.rstrip('/')}/{answer['name']}"
        folder = open_run(place, config.data.cache_dir, f"rank-{group.rank}")
    return folder, answer["status"], 0


def check(config: Config) -> None:
    """Refuses, before a run folder is made, what would fail in all ranks.

    Raises:
        DfdetError: Sets that are missing or damaged, an unknown tower.
    """
    from dfdet.model.backbone import check_backbone

    open_run_data(config)
    check_backbone(config.model)


def train_claimed(config: Config, context: LocalContext, interrupts: Interrupts) -> int:
    """Trains; gives the exit code, the same on all ranks."""
    from dfdet.train import train  # after the claim: a refused or finished run waits for no import

    folder, first = context.run, context.rank == 0
    log_to(log_handlers(folder, context.rank))
    if first:
        logger.info("run folder: %s", folder.place)
    interrupts.ask(context)
    try:
        result = train(config, context)
    finally:
        context.close()
    if result["status"] == "finished":  # no collective any more: a rank may be killed, the run is done
        if first:
            show_result(result, folder.named(folder.result_json))
        return 0
    number = torch.tensor(interrupts.number or 0, device=context.device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    if first:
        logger.info("stopped (%s); go on with --run.name %s", result["reason"], folder.path.name)
    return 128 + int(number) if number else 1


def log_handlers(folder: RunFolder, rank: int) -> list[logging.Handler]:
    """Where a rank logs: the first also for people, the others show them warnings only."""
    structured = JsonLog(folder.path, f"rank-{rank}", rank)
    if rank == 0:
        return [RunLog(folder.log_txt), structured, logging.StreamHandler(sys.stdout)]
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    return [structured, console]


def watched(config: Config, context: LocalContext) -> Watchdog:
    """Ends this rank, with one line of one rank, when training hangs."""
    folder, rank = context.run, context.rank

    def tell(hang: Hang) -> None:
        message = line(hang, folder.named(folder.path / STACKS))
        # before anything that touches the storage, which may be what hangs
        sys.stderr.write(f"error: {message} (log: {folder.named(folder.log_txt)})\n")
        _first_failure(folder, {"message": message, "exit_code": 1, "rank": rank})
        _keep(folder, message, f"{message}\n")

    return Watchdog(
        config.engine.hang_timeout_s,
        rank,
        context.world_size,
        folder.path / STACKS,
        tell,
        folder.release,
    )


def fail(error: Exception, folder: RunFolder, group: Group) -> int:
    """The exit code of a rank that failed; the one that failed first raises its one clear line.

    Raises:
        DfdetError: In the rank that was the first to fail.
    """
    if isinstance(error, PeerFailedError):
        return 1
    message = str(error) if isinstance(error, DfdetError) else _in_a_line(error, group)
    told = DfdetError(f"{message} (log: {folder.named(folder.log_txt)})")
    told.exit_code = error.exit_code if isinstance(error, DfdetError) else 1
    first = _first_failure(folder, {"message": message, "exit_code": told.exit_code, "rank": group.rank})
    if first is not None:
        return int(first["exit_code"])
    _keep(folder, message, "".join(traceback.format_exception(error)), error)
    raise told from error


def _keep(folder: RunFolder, message: str, text: str, error: Exception | None = None) -> None:
    """Records a failure in the run's logs and its result."""
    log_json(message, error)
    try:
        with folder.log_txt.open("a", encoding="utf-8") as file:
            file.write(text)
        folder.write_result({"status": "failed", "message": message, "metrics": {}})
    except (OSError, DfdetError):
        logger.warning("%s: cannot be written either", folder.place)


def _in_a_line(error: Exception, group: Group) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    if group.world_size > 1 and "onnection" in text:
        return f"lost another worker ({text}); start again with the same --run.name to go on"
    return text


def _first_failure(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any] | None:
    """Records a failure; gives the one that another rank has recorded before, if one has."""
    try:
        folder.publish_new(FAILURE, to_json(record).encode())
    except FileExistsError:
        return dict(json.loads(folder.bring(FAILURE).read_text(encoding="utf-8")))
    except OSError:
        pass  # a storage that cannot tell leaves it open
    return None
