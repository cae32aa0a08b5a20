"""Trains a detector on a Ray cluster or on this machine.

    python ray_jobs/train.py [RECIPE] [--section.field VALUE ...]
    python ray_jobs/train.py --config runs/NAME/config.json [--section.field VALUE ...]
    ray job submit --working-dir . -- python ray_jobs/train.py

Without a recipe it runs `demo`, building the demo set if there is none.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from dfdet.cli import parse
from dfdet.config import Config, named_sets
from dfdet.data.sets import open_run_data
from dfdet.errors import DfdetError
from dfdet.recipes import DEMO_SHARDS, RECIPES
from dfdet.runfolder import RunFolder, default_name
from ray_jobs.cluster import absolute, check_local, connect
from ray_jobs.progress import Follower
from ray_jobs.worker import FAILURE, log_to

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    try:
        if not argv:
            print(f"no recipe given: running demo (there are {', '.join(RECIPES)}; --help tells more)")
        config = with_absolute_paths(parse(argv, prog="train.py"))
        build_demo_if_missing(config)
        check(config)
        return run(config)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def with_absolute_paths(config: Config) -> Config:
    """The config with every path absolute and its run named, so that it means the same anywhere."""
    data = config.data
    pretrained = config.model.pretrained
    is_file = pretrained is not None and ("/" in pretrained or Path(pretrained).suffix != "")
    return config.replace(
        {
            "run.storage": absolute(config.run.storage),
            "run.name": config.run.name or default_name(config.run.recipe),
            "data.train": tuple(map(absolute, data.train)),
            "data.val": _absolute_sets(data.val),
            "data.test": _absolute_sets(data.test),
            # the home folder is each node's own
            "data.cache_dir": data.cache_dir if data.cache_dir.startswith("~") else absolute(data.cache_dir),
            "model.pretrained": absolute(pretrained) if is_file and pretrained else pretrained,
        }
    )


def _absolute_sets(entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}={absolute(path)}" for name, path in named_sets(entries).items())


def build_demo_if_missing(config: Config) -> None:
    """Builds the demo set where the config asks for it and it is not there."""
    folder = Path(absolute(DEMO_SHARDS))
    wanted = [
        *config.data.train,
        *named_sets(config.data.val).values(),
        *named_sets(config.data.test).values(),
    ]
    missing = [path for path in wanted if Path(path).parent == folder and not Path(path).exists()]
    if missing:
        from shards.demo import build
        from shards.progress import show_progress

        print(f"building the demo set in {folder}", flush=True)
        with show_progress("demo videos") as progress:
            build(folder, progress=progress)


def check(config: Config) -> None:
    """Refuses, before any worker starts, what would fail in all of them."""
    open_run_data(config)
    from dfdet.backbone import check_backbone

    check_backbone(config.model)
    check_local(config.run)


def run(config: Config) -> int:
    """Claims the run folder, trains, prints the result."""
    folder, status = RunFolder.claim(Path(config.run.storage), str(config.run.name), config)
    try:
        if status == "finished":
            print(f"{folder.path}: already finished; its result:")
            show_result(folder)
            return 0
        log_to(folder.log_txt)
        print(f"run folder: {folder.path}" + (" (resuming)" if status == "resume" else ""), flush=True)
        with Follower(folder.log_txt, folder.metrics_jsonl):
            failure, signals = fit(config, folder)
        return conclude(folder, failure, signals)
    finally:
        folder.release()


def fit(config: Config, folder: RunFolder) -> tuple[BaseException | None, list[int]]:
    """One ``TorchTrainer`` run on the cluster; gives what it failed with and the signals received."""
    (folder.path / FAILURE).unlink(missing_ok=True)
    import ray

    from ray_jobs.trainer import torch_trainer

    cuda = connect(config.run)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            torch_trainer(config, folder, cuda=cuda).fit()
        except Exception as error:  # noqa: BLE001 - TrainingFailedError, ActorDiedError and what Ray adds
            failures.append(error)

    try:
        # Handlers come after Ray's own, and Ray Train installs one only if it is called in the main thread.
        with stop_on_signals(folder) as signals:
            thread = threading.Thread(target=call, name="ray-train")
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
    finally:
        ray.shutdown()
    return (failures[0] if failures else None), signals


def conclude(folder: RunFolder, failure: BaseException | None, signals: list[int]) -> int:
    """Exit code of a run that ended, with its result or its one clear line printed."""
    recorded = folder.path / FAILURE
    if recorded.exists():
        record = json.loads(recorded.read_text(encoding="utf-8"))
        return _failed(folder, record["message"], record["exit_code"])
    if failure is not None and not signals:
        return _failed(folder, " ".join(str(failure).split())[:500], 1, failure)
    result = folder.read_result()
    if result and result["status"] == "finished":
        show_result(folder)
        return 0
    if signals:
        print(f"stopped; go on with --run.name {folder.path.name}", flush=True)
        return 128 + signals[0]
    if result and result["status"] == "stopped":
        print(f"stopped ({result['reason']}); go on with --run.name {folder.path.name}", flush=True)
        return 1
    return _failed(folder, "the workers ended without a result", 1)


def _failed(folder: RunFolder, message: str, code: int, cause: BaseException | None = None) -> int:
    logger.error("%s", message, exc_info=cause)
    folder.write_result({"status": "failed", "message": message, "metrics": {}})
    print(f"error: {message} (log: {folder.log_txt})", file=sys.stderr)
    return code


@contextmanager
def stop_on_signals(folder: RunFolder) -> Iterator[list[int]]:
    """SIGINT and SIGTERM ask the workers for a checkpoint and an end; a second one ends at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        print("stopping at the next log step, with a checkpoint (again to stop at once)", flush=True)
        folder.request_stop(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_result(folder: RunFolder) -> None:
    """Prints the video-level metrics, and where everything lies."""
    result = folder.read_result() or {}
    rows: dict[str, dict[str, Any]] = {}
    for name, value in result.get("metrics", {}).items():
        split, dataset, level, metric = name.split("/", 3)
        rows.setdefault(f"{split}/{dataset} {level}", {})[metric] = value
    table = Table("set", "AUROC", "AP", "EER", "TPR at FPR 5 %")
    for name, found in rows.items():
        shown = (found.get(key) for key in ("auroc", "ap", "eer", "tpr_at_fpr_5e-2"))
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in shown))
    console = Console(width=100) if not sys.stdout.isatty() else Console()
    console.print(table)
    for name, value in result.get("metrics", {}).items():
        if name.startswith("test/") and name.endswith("/video/auroc") and value is not None:
            console.print(f"{name} = {value:.4f}", highlight=False)
    sizes = result.get("checkpoint_bytes", {})
    parts = ", ".join(
        f"{name} {size / 1000:,.1f} kB" for name, size in sizes.items() if name.endswith(".safetensors")
    )
    console.print(
        f"best checkpoint: {result.get('best_checkpoint')} ({parts})", soft_wrap=True, highlight=False
    )
    console.print(f"result: {folder.result_json}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
