"""The real parsers of our programs, for the command lines of the pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro
from click import Group
from pydantic import BaseModel
from ray.scripts.scripts import cli as ray_cli

from dfdet import cli
from dfdet.benchmark.scaling import ScalingOptions
from dfdet.benchmark.step import StepOptions
from dfdet.evaluation.options import Options as Evaluate
from dfdet.evaluation.reproduction import Options as Reproduce
from dfdet.export.request import Options as Export
from dfdet.sweep import command as sweep
from dfdet.sweep.options import Options as Sweep
from ray_jobs import doctor, reproduce
from ray_jobs.predict import Predict
from ray_jobs.serve_options import Serve
from ray_jobs.shard import ShardJob
from shards.__main__ import Command
from shards.blend.build import Blend
from shards.foreign.index import IndexTars
from shards.images import ImageSets
from shards.inspection.inspect import Inspect

Parser = Callable[[list[str]], object]


def _config(args: list[str]) -> object:
    if "--config" in args:  # of a run that only a reader has
        place = args.index("--config")
        args = args[:place] + args[place + 2 :]
    return cli.parse(args, "program")


def _reproduce(args: list[str]) -> object:
    own, training = reproduce.split(args)
    return cli.parse_flags(Reproduce, own, "reproduce.py"), cli.parse(["gend", *training], "train.py")


def _benchmark(args: list[str]) -> object:
    kind: Any = {"step": StepOptions, "scaling": ScalingOptions}[args[0]]
    return tyro.cli(kind, args=args[1:])


def _tyro(kind: Any, args: list[str]) -> object:
    return tyro.cli(kind, args=args, use_underscores=True)


def _flags(kind: type[BaseModel], args: list[str]) -> object:
    return cli.parse_flags(kind, args, "program")


def _switches(kind: type[BaseModel], args: list[str]) -> object:
    return cli.parse_flags(kind, args, "program", switches=True)


def _one(args: list[str]) -> object:
    assert len(args) == 1, args
    return args[0]


PARSERS: dict[str, Parser] = {
    "dfdet": _config,
    "dfdet.benchmark": _benchmark,
    "dfdet.export": _one,
    "dfdet.published": _one,
    "ray_jobs/doctor.py": lambda args: _config(doctor.parse(args)[1]),
    "ray_jobs/evaluate.py": partial(_flags, Evaluate),
    "ray_jobs/export.py": partial(_switches, Export),
    "ray_jobs/predict.py": partial(_switches, Predict),
    "ray_jobs/reproduce.py": _reproduce,
    "ray_jobs/serve.py": partial(_switches, Serve),
    "ray_jobs/shard.py": partial(_tyro, ShardJob),
    "ray_jobs/train.py": _config,
    "ray_jobs/tune.py": partial(sweep.parse, prog="tune.py"),
    "shards": partial(_tyro, Command),
}
"""By module, or by path in the checkout."""

MODELS: tuple[type[BaseModel], ...] = (
    *(Blend, doctor.Options, Evaluate, Export, ImageSets, IndexTars, Inspect, Predict, Reproduce, Serve),
    *(ShardJob, Sweep),
)


def flags() -> set[str]:
    """All flags of our programs, without hyphens before them."""
    own = {name for model in MODELS for name in model.model_fields}
    switches = {
        f"no_{name}"
        for model in MODELS
        for name, field in model.model_fields.items()
        if field.annotation is bool
    }
    return own | switches | set(cli.field_paths()) | {"config", "resume", "help"}


def programs(text: str) -> list[tuple[str, list[str]]]:
    """The programs in a line of shell that Python runs, by module or path, with their arguments."""
    found = []
    for words in map(shlex.split, parts(text)):
        for place, word in enumerate(words):
            if word == "-m" and words[0] in ("python", "torchrun"):
                module = re.sub(r"^ray_jobs\.(\w+)$", r"ray_jobs/\1.py", words[place + 1])
                found.append((module, words[place + 2 :]))
                break
            if word.endswith(".py") and words[place - 1] == "python":
                found.append((word, words[place + 1 :]))
                break
    return found


def parts(text: str) -> list[str]:
    """The simple commands of a line of shell."""
    return re.split(r"\s(?:&&|\|\||\||;)\s", text)


def parse(program: str, args: Sequence[str]) -> None:
    """Parses arguments as a program of ours does.

    Raises:
        ConfigError: They are refused.
        AssertionError: So they are, by tyro itself.
    """
    try:
        PARSERS[program](list(args))
    except SystemExit as stop:
        assert stop.code in (0, None), f"{program} {shlex.join(args)}"


def parse_ray(words: Sequence[str]) -> None:
    """Parses the arguments of ``ray`` as it does.

    Raises:
        ClickException: They are refused.
    """
    name, command, args = "ray", ray_cli, list(words)
    while isinstance(command, Group):
        name = args.pop(0)
        command = command.commands[name]
    command.make_context(name, args)


def ray_flags(command: Any = ray_cli) -> set[str]:
    """All flags of ``ray``, without hyphens before them."""
    own = {flag.lstrip("-") for each in command.params for flag in each.opts}
    below = command.commands.values() if isinstance(command, Group) else ()
    return own.union(*map(ray_flags, below))
