"""The command line of a sweep, and its record, from which ``--resume`` takes it up again.

``RECIPE [--trials 16 ...] [--section.field VALUE ...]`` begins a sweep: flags without a dot are the
sweep's, those with one are the config's. ``--resume NAME [--trials 32 ...]`` goes on with one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dfdet import cli
from dfdet.config import Config, explain
from dfdet.errors import ConfigError
from dfdet.runs.atomic import write_json_atomic
from dfdet.sweep.options import Options
from dfdet.sweep.space.space import Space

RECORD = "sweep.json"
"""File of the sweep's folder."""


class Record(BaseModel):
    """All that makes a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    config: Config
    """Of a setting, before the searched values are put in."""
    options: Options
    space: Space


class Command(BaseModel):
    """What a command line asks for."""

    options: Options
    config: Config | None
    """None: of the sweep that is resumed."""
    resume: str | None = None
    """Name of the sweep to go on with."""
    storage: str = "runs"
    """Where that lies."""
    flags: tuple[str, ...] = ()
    """The sweep's own flags, as given."""


def parse(argv: Sequence[str], prog: str) -> Command:
    """Reads a command line.

    Raises:
        ConfigError: An unknown flag, a bad value, an impossible combination.
        SystemExit: Help was asked for and printed (code 0).
    """
    own, rest = split(argv)
    if {"-h", "--help"} & set(argv):
        if not [arg for arg in rest if arg not in {"-h", "--help"}]:
            cli.parse_flags(Options, ["--help"], f"{prog} RECIPE|--resume NAME")
        cli.parse(rest, prog)
    options = cli.parse_flags(Options, own, prog)
    name = _value_of("--resume", rest)
    if name is None:
        return Command(options=options, config=cli.parse(rest, prog), flags=tuple(own))
    storage = _value_of("--run.storage", rest)
    unknown = [arg for arg in rest if arg.startswith("--") and arg.partition("=")[0] not in RESUME_FLAGS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: a resumed sweep keeps its config; give --run.storage and the sweep's own flags"
            " alone, or begin another sweep"
        )
    return Command(options=options, config=None, resume=name, storage=storage or "runs", flags=tuple(own))


RESUME_FLAGS = ("--resume", "--run.storage")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of the sweep with their values, and the rest: the recipe and flags of the config."""
    own: list[str] = []
    rest: list[str] = []
    current = rest
    for arg in argv:
        if arg.startswith("--"):
            name = arg[2:].partition("=")[0].replace("-", "_")
            known = name in Options.model_fields
            if not known and "." not in name and name not in {"help", "config", "resume"}:
                raise ConfigError(f"{arg.partition('=')[0]}: {_unknown(name)}")
            current = own if known else rest
        current.append(arg)
    return own, rest


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [*Options.model_fields, "resume", "config"], n=1)
    return f"no such flag; {f'did you mean --{near[0]}? ' if near else ''}see --help"


def _value_of(flag: str, args: Sequence[str]) -> str | None:
    for place, arg in enumerate(args):
        head, equals, inline = arg.partition("=")
        if head == flag:
            value = inline if equals else "".join(args[place + 1 : place + 2])
            if not value or value.startswith("-"):
                raise ConfigError(f"{flag}: give it a value, as {flag} NAME")
            return value
    return None


def resumed(command: Command, folder: Path, prog: str) -> Record:
    """The record of a sweep with the command's own flags put in.

    Raises:
        ConfigError: There is no such sweep.
    """
    saved = read(folder)
    options = cli.parse_flags(Options, command.flags, prog, default=saved.options)
    return saved.model_copy(update={"options": options})


def read(folder: Path) -> Record:
    """Reads ``sweep.json``.

    Raises:
        ConfigError: There is none, or it is no sweep's.
    """
    path = folder / RECORD
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"--resume {folder.name}: there is no sweep of this name in {folder.parent}; give the folder's"
            " name as --resume, and its parent as --run.storage"
        ) from None
    except ValidationError as error:
        raise ConfigError(f"{path}: not a sweep's record ({explain(error)})") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def write(folder: Path, record: Record) -> None:
    """Writes ``sweep.json``, whole."""
    write_json_atomic(folder / RECORD, record.model_dump(mode="json"))
