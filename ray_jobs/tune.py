"""Searches hyperparameters: Optuna proposes settings, Ray Tune trains them side by side.

    python ray_jobs/tune.py RECIPE [--trials 16 ...] [--section.field VALUE ...]
    python ray_jobs/tune.py --resume NAME [--trials 32 ...]
    ray job submit --working-dir . -- python ray_jobs/tune.py gend --trials 32

What it found lies in the sweep's folder: best.json for `train.py --config`, trials.csv, report.html.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dfdet.config import Config
from dfdet.data.remote import is_url
from dfdet.data.sets import RunData
from dfdet.errors import ConfigError, DfdetError
from dfdet.runs.runlog import RunLog, log_to
from dfdet.sweep import command
from dfdet.sweep.command import Command, Record
from dfdet.sweep.objective import Objective, parse_objectives
from dfdet.sweep.options import Options
from dfdet.sweep.outcome import write_outcome
from dfdet.sweep.samplers import build_pruner, check_sampler
from dfdet.sweep.space.checks import check_space
from dfdet.sweep.space.defaults import default_space, published_points
from dfdet.sweep.space.file import read_space
from dfdet.sweep.space.space import Space
from dfdet.sweep.storage import check_database, with_absolute_path
from dfdet.sweep.study import Search, SweepStudy
from dfdet.sweep.sweeper import Sweeper
from ray_jobs.cluster import (
    absolute,
    check_resources,
    connect,
    input_file,
    joins_cluster,
    local_resources,
    resources,
    with_config_file,
)
from ray_jobs.console import Console
from ray_jobs.preflight import build_demo_if_missing, check, with_absolute_paths
from ray_jobs.sweeping import concurrency, run_sweep
from ray_jobs.watch import watch

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    try:
        asked = command.parse(with_config_file(argv), "tune.py")
        return run(begun(asked) if asked.config is not None else resumed(asked))
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def begun(asked: Command) -> Record:
    """A sweep from its command line; where its name is taken by the same sweep, that goes on."""
    assert asked.config is not None
    config = with_absolute_paths(asked.config)
    refuse_url(config.run.storage)
    build_demo_if_missing(config)
    options = asked.options
    if options.study:
        options = options.model_copy(update={"study": with_absolute_path(options.study, absolute)})
    data = check_setting(config, options)
    return Record(config=config, options=options, space=searched(config, options, data))


def resumed(asked: Command) -> Record:
    """A sweep from its folder, with the command line's own flags."""
    refuse_url(asked.storage)
    record = command.resumed(asked, Path(absolute(asked.storage)) / str(asked.resume), "tune.py")
    data = check_setting(record.config, record.options)
    if "--space" in " ".join(asked.flags):
        record = record.model_copy(update={"space": searched(record.config, record.options, data)})
    return record


def refuse_url(storage: str) -> None:
    """Refuses a storage without a filesystem, where a sweep's journal and drivers meet.

    Raises:
        ConfigError: It is a URL.
    """
    if is_url(storage):
        raise ConfigError(
            f"run.storage={storage}: a sweep's study needs a filesystem; give a folder that all nodes see as"
            " --run.storage (a single run by train.py can lie behind a URL)"
        )


def check_setting(config: Config, options: Options) -> RunData:
    """Refuses what would fail in every setting, before any starts; gives their sets."""
    if not isinstance(config.run.workers, int):
        raise ConfigError(
            f"run.workers={list(config.run.workers)}: settings of a sweep train side by side, each with"
            " equally many workers; give one number"
        )
    if options.study:
        check_database(options.study)
    data = check(config)
    if not joins_cluster():
        available = local_resources()
        concurrency(config, options.concurrent, available, cuda=check_resources(config, available))
    return data


def searched(config: Config, options: Options, data: RunData) -> Space:
    """The space of a sweep: the default one, or what its file makes of it."""
    space = default_space(config, data.widest_crop)
    if options.space:
        space = read_space(Path(input_file(options.space)), space, config)
    check_space(space, config, data.widest_crop)
    return space


def folder_of(record: Record) -> Path:
    """Folder of the sweep."""
    return Path(record.config.run.storage) / str(record.config.run.name)


def run(record: Record) -> int:
    """Searches, and leaves what was found in the sweep's folder."""
    folder, config = folder_of(record), record.config
    objectives = parse_objectives(record.options.objective, config)
    check_sampler(record.options.sampler, record.space, len(objectives), record.options.pruner)
    with open_studies(folder, record, objectives) as (search, final):
        command.write(folder, record)
        log_to([RunLog(folder / "log.txt")])
        print(f"sweep folder: {folder}", flush=True)
        for name, why in search.publish(published_points(config)).items():
            print(f"published setting {name} is not among the trials: {why}", flush=True)
        cuda = connect(config)
        sweeper = Sweeper(folder, config, record.options, objectives, search, final)
        failure, signals = search_on_ray(sweeper, cuda=cuda)
        return conclude(sweeper, failure, signals)


@contextmanager
def open_studies(
    folder: Path, record: Record, objectives: list[Objective]
) -> Iterator[tuple[SweepStudy, SweepStudy]]:
    """The study of the search and that of the last runs, open for this driver."""
    options, config = record.options, record.config
    header = {
        "base": config.model_dump(mode="json"),
        "space": record.space.model_dump(mode="json"),
        "options": options.model_dump(mode="json"),
    }
    search = Search(
        config,
        record.space,
        options.sampler,
        config.run.seed,
        build_pruner(options.pruner, config.optim.epochs, options.reduction, options.min_epochs),
    )
    with ExitStack() as stack:
        studies = []
        for name, how in ((folder.name, search), (f"{folder.name}-final", None)):
            study = SweepStudy.open(
                folder, options.study, name=name, objectives=objectives, header=header, search=how
            )
            stack.callback(study.close)
            studies.append(study)
        yield studies[0], studies[1]


def search_on_ray(sweeper: Sweeper, *, cuda: bool) -> tuple[BaseException | None, list[int]]:
    """Runs the sweep on the cluster; gives what it failed with and the signals received."""
    concurrent = concurrency(sweeper.base, sweeper.options.concurrent, resources(), cuda=cuda)
    print(f"{concurrent} settings side by side", flush=True)
    with Console(sweeper, concurrent):
        return watch(lambda: run_sweep(sweeper, concurrent, cuda=cuda), sweeper.stop)


def conclude(sweeper: Sweeper, failure: BaseException | None, signals: list[int]) -> int:
    """Exit code of a sweep that ended, with what it found written and printed."""
    outcome = write_outcome(sweeper)
    if outcome.best:
        print(f"{outcome.verdict}\nbest config: {outcome.best}")
    print(f"report: {outcome.report}", flush=True)
    again = f"--resume {sweeper.folder.name}"
    if signals:
        print(f"stopped; go on with {again}", flush=True)
        return 128 + signals[0]
    if failure is not None:
        own = isinstance(failure, DfdetError)
        message = str(failure) if own else f"{type(failure).__name__}: {failure}; go on with {again}"
        logger.error("%s", message, exc_info=failure)
        print(f"error: {message} (log: {sweeper.folder / 'log.txt'})", file=sys.stderr)
        return 1
    if not outcome.best:
        print("error: no setting was trained to its end; the reasons are in the report", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what Ray does at exit would wait for a cluster that is gone
