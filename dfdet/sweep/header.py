"""What a study was begun with, and whether a driver that opens it again means the same sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optuna import Study

from dfdet.config import leaves
from dfdet.errors import ConfigError
from dfdet.runs.same_config import NEVER_COMPARED, may_change
from dfdet.sweep.objective import Objective

FORMAT = 1
"""Of the header and of the attributes of trials."""

KEPT_OPTIONS = ("seeds",)
"""Options without which a setting's score would mean something else."""

REMEDY = "give the old values, or start a new sweep under another --run.name"


def check_header(what: str, stored: dict[str, Any], header: dict[str, Any]) -> None:
    """Refuses to go on with a study that was begun with something else.

    Args:
        what: Names the study; begins the message.
        stored: Its header: ``format``, ``base`` (the dumped base config), ``options``, ``objectives``.
        header: The one that it would have now.

    Raises:
        ConfigError: One line with all differences.
    """
    if stored.get("format") != header["format"]:
        raise ConfigError(
            f"{what}: is of format {stored.get('format')}, and this version reads {header['format']}; take"
            " the version of dfdet that began it, or another --run.name"
        )
    before, after = _compared(stored), _compared(header)
    changes = [
        f"{path}: {_shown(before, path)} -> {_shown(after, path)}"
        for path in [*before, *(after.keys() - before.keys())]
        if before.get(path) != after.get(path) or (path in before) != (path in after)
    ]
    if changes:
        raise ConfigError(f"{what}: was begun with another sweep ({'; '.join(changes)}); {REMEDY}")


def _compared(header: dict[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(header))  # tuples as lists, as they come back
    fields = {
        path: value
        for path, value in leaves(plain["base"]).items()
        if path not in NEVER_COMPARED and not may_change(path)
    }
    options = {f"--{name}": plain.get("options", {}).get(name) for name in KEPT_OPTIONS}
    return fields | options | {"--objective": plain["objectives"]}


def _shown(fields: dict[str, Any], path: str) -> str:
    return json.dumps(fields[path]) if path in fields else "nothing"


def full_header(header: dict[str, Any], objectives: Sequence[Objective]) -> dict[str, Any]:
    """A header with its format and objectives."""
    return {**header, "format": FORMAT, "objectives": [str(objective) for objective in objectives]}


def claim(study: Study, home: str, header: dict[str, Any]) -> None:
    """Makes a new study the sweep's, or sees that an old one is; call it under the drivers' lock.

    Args:
        study: To open.
        home: Name of the sweep's folder: drivers of another could not see who of these is alive.
        header: As :func:`full_header` makes it; the study keeps the newest.

    Raises:
        ConfigError: It belongs to another folder, or was begun with something else.
    """
    what, attrs = f"study {study.study_name}", study.user_attrs
    if attrs.get("home", home) != home:
        raise ConfigError(
            f"{what}: belongs to a sweep in another folder; start this driver with that one's --run.storage"
            " and --run.name, on storage that both hosts see, or take another --run.name"
        )
    if "header" in attrs:
        check_header(what, attrs["header"], header)
    elif study.get_trials(deepcopy=False):
        raise ConfigError(f"{what}: is no sweep's, though it has trials; take another --run.name")
    if "home" not in attrs:
        study.set_user_attr("home", home)
    if attrs.get("header") != json.loads(json.dumps(header)):
        study.set_user_attr("header", header)
