"""Paths of a config made absolute, so that they mean the same in every process and on a resume."""

from __future__ import annotations

import os
from pathlib import Path

from dfdet.config import Config, named_sets
from dfdet.data.remote import is_url, refuse_secrets
from dfdet.recipes import DEMO_SHARDS


def absolute(path: str, home: Path | None = None) -> str:
    """A path from the root; a URL as it is.

    Args:
        path: Relative ones lie in ``home``.
        home: None for the working folder.

    Raises:
        ShardSetError: A URL holds a user or password.
    """
    if is_url(path):
        return refuse_secrets(path)
    return os.path.normpath((home or Path.cwd()) / Path(path).expanduser())


def with_absolute_paths(config: Config, home: Path | None = None) -> Config:
    """The config with every path as :func:`absolute` has it."""
    data, pretrained = config.data, config.model.pretrained
    is_file = pretrained is not None and ("/" in pretrained or Path(pretrained).suffix != "")
    sets = {
        f"data.{split}": tuple(f"{name}={absolute(path, home)}" for name, path in named_sets(entries).items())
        for split, entries in (("val", data.val), ("test", data.test))
    }
    # the home folder of a user is each node's own
    cache = data.cache_dir if data.cache_dir.startswith("~") else absolute(data.cache_dir, home)
    return config.replace(
        {
            "run.storage": absolute(config.run.storage, home),
            "data.train": tuple(absolute(path, home) for path in data.train),
            **sets,
            "data.cache_dir": cache,
            "model.pretrained": absolute(pretrained, home) if is_file and pretrained else pretrained,
        }
    )


def missing_demo_sets(config: Config, home: Path | None = None) -> list[str]:
    """Manifests of the demo set that the config (of absolute paths) names and that are not there."""
    data, folder = config.data, Path(absolute(DEMO_SHARDS, home))
    paths = [*data.train, *named_sets(data.val).values(), *named_sets(data.test).values()]
    return [path for path in paths if Path(path).parent == folder and not Path(path).exists()]
