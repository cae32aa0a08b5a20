"""What every training job does before Ray: paths made absolute, the demo set built, bad input refused."""

from __future__ import annotations

from pathlib import Path

from dfdet import paths
from dfdet.config import Config
from dfdet.data.sets import RunData, open_run_data
from dfdet.recipes import DEMO_SHARDS
from dfdet.runs.runfolder import default_name
from ray_jobs import tracking
from ray_jobs.cluster import absolute, check_local, home


def with_absolute_paths(config: Config) -> Config:
    """The config with every path absolute and its run named, so that it means the same anywhere."""
    config = paths.with_absolute_paths(config, home())
    return config.replace({"run.name": config.run.name or default_name(config.run.recipe)})


def build_demo_if_missing(config: Config) -> None:
    """Builds the demo set where the config asks for it and it is not there."""
    if paths.missing_demo_sets(config, home()):
        from shards.demo import build
        from shards.progress import show_progress

        folder = Path(absolute(DEMO_SHARDS))
        print(f"building the demo set in {folder}", flush=True)
        with show_progress("demo videos") as progress:
            build(folder, progress=progress)


def check(config: Config) -> RunData:
    """Refuses, before any worker starts, what would fail in all of them; gives the sets, opened."""
    data = open_run_data(config)
    from dfdet.model.backbone import check_backbone

    check_backbone(config.model)
    tracking.check(config)
    check_local(config)
    return data
