"""The command line of training: a recipe or a saved config, and any field as a flag.

``RECIPE --optim.lr 3e-4`` or ``--config run/config.json --optim.lr 3e-4``. Flags and help are made
from the config tree by tyro; a mistake is one clear line.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from dfdet.config import Config, explain, from_json
from dfdet.errors import ConfigError
from dfdet.recipes import RECIPES

DEFAULT_RECIPE = "demo"
Flags = TypeVar("Flags", bound=BaseModel)

OPTIONS = (tyro.conf.FlagConversionOff,)
"""Every field is ``--path VALUE``, booleans too (``--loss.slerp True``), as in sweeps and messages."""


def parse(argv: Sequence[str], prog: str) -> Config:
    """The config that a command line asks for.

    Raises:
        ConfigError: An unknown recipe or field, a bad value, an impossible combination.
        SystemExit: Help was asked for and printed (code 0).
    """
    args = list(argv)
    if args and (args[0] == "--config" or args[0].startswith("--config=")):
        return _parse_saved(args, prog)
    if not args or (args[0].startswith("-") and args[0] not in {"-h", "--help"}):
        args = [DEFAULT_RECIPE, *args]
    if not args[0].startswith("-") and args[0] not in RECIPES:
        raise ConfigError(_unknown_recipe(args[0]))
    _refuse_unknown_flags(args)
    configs = {name: (_summary(recipe), recipe()) for name, recipe in RECIPES.items()}
    return _quietly(
        lambda: tyro.extras.overridable_config_cli(
            configs, prog=prog, args=args, use_underscores=True, config=OPTIONS
        )
    )


def _parse_saved(args: list[str], prog: str) -> Config:
    head, _, inline = args[0].partition("=")
    path, rest = (inline, args[1:]) if inline else ("".join(args[1:2]), args[2:])
    if not path or path.startswith("-"):
        raise ConfigError(f"{head}: give the path of a run's config.json")
    _refuse_unknown_flags(rest)
    saved = from_json(Path(path))
    return _quietly(
        lambda: tyro.cli(Config, prog=prog, args=rest, default=saved, use_underscores=True, config=OPTIONS)
    )


def parse_flags(
    kind: type[Flags],
    argv: Sequence[str],
    prog: str,
    default: Flags | None = None,
    *,
    switches: bool = False,
) -> Flags:
    """Flags of another model than the config, as ``--trials 16``.

    Args:
        switches: Booleans are bare, as ``--sheet`` and ``--no_sheet``.

    Raises:
        ConfigError: A bad value or an impossible combination.
        SystemExit: Help was asked for and printed (code 0).
    """
    start = tyro.MISSING_NONPROP if default is None else default
    return _quietly(
        lambda: tyro.cli(
            kind,
            prog=prog,
            args=list(argv),
            default=start,
            use_underscores=True,
            config=() if switches else OPTIONS,
        )
    )


def field_paths(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted paths of all fields, ``run.recipe`` first."""
    paths: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += field_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _refuse_unknown_flags(args: list[str]) -> None:
    if {"-h", "--help"} & set(args):
        return
    known = field_paths()
    for arg in args:
        path = arg.removeprefix("--").partition("=")[0].replace("-", "_")
        if arg.startswith("--") and path not in known:
            raise ConfigError(f"{arg.partition('=')[0]}: {_unknown_flag(path, known)}")


def _unknown_flag(path: str, known: list[str]) -> str:
    if path == "config":
        return "give it first, in place of a recipe: --config run/config.json --optim.lr 3e-4"
    near = difflib.get_close_matches(path, known, n=1)
    if not near:  # perhaps without its section
        leaves = {other.rpartition(".")[2]: other for other in known}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(path.rpartition(".")[2], leaves, n=1)]
    return "no such field; " + (f"did you mean --{near[0]}?" if near else "see --help for all fields")


def _unknown_recipe(name: str) -> str:
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"recipe {name!r}: unknown; {hint}there are {', '.join(RECIPES)}"


def _summary(recipe: Callable[[], Config]) -> str:
    """A recipe's docstring without Sphinx markup, a paragraph a line."""
    plain = re.sub(r":[a-z]+:`~?([^`]*)`|``([^`]*)``", r"\1\2", inspect.getdoc(recipe) or "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in plain.split("\n\n"))


def _quietly(parse: Callable[[], Flags]) -> Flags:
    """Turns tyro's boxes into one line: it prints them itself and exits."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(stop, printed.getvalue())) from stop


def _one_line(stop: BaseException, box: str) -> str:
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, ValidationError):
            prefix = re.search(r"Error parsing (?:__tyro_dummy_inner__\.)?([a-z_.]+):", box)
            return explain(cause, prefix[1] if prefix else "")
        cause = cause.__cause__ or cause.__context__
    lines = [re.sub(r"[─╭╮╰╯│]", "", line).strip() for line in box.splitlines()]
    kept = [line for line in lines[1:] if line]
    return f"{' '.join(_until_help(kept))}; see --help"


def _until_help(lines: list[str]) -> list[str]:
    marks = ("Argument helptext", "For full helptext")
    end = next((i for i, line in enumerate(lines) if line.startswith(marks)), len(lines))
    return lines[:end]
