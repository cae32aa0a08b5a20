"""``python -m shards``: make and check shard sets on the command line."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from dfdet.errors import DfdetError, InputError
from shards.blend.build import Blend, blend_set
from shards.foreign.index import IndexTars, index_tars
from shards.images import ImageSets, MadeSet, make_sets
from shards.inspection.inspect import Inspect, inspect_set
from shards.options import VideoSets
from shards.places import local_folder
from shards.progress import show_progress
from shards.report import losses, train_command
from shards.sets.manifest import check_no_leak, read_manifest
from shards.sets.verify import verify_set
from shards.version import version

SHOWN_FAILURES = 5


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Verify(_Command):
    """Check shard sets from end to end; exit code 1 if one is damaged, 2 if two splits share a group."""

    sets: tyro.conf.Positional[tuple[Path, ...]]
    """Manifests (NAME.json)."""


class Demo(_Command):
    """Make the demo sets: rendered talking heads, and fakes forged from them."""

    out: Path
    """Folder for the sets."""
    seed: int = 0
    """Seed of all that is rendered."""


Command = (
    Annotated[VideoSets, tyro.conf.subcommand("videos")]
    | Annotated[ImageSets, tyro.conf.subcommand("images")]
    | Annotated[IndexTars, tyro.conf.subcommand("index")]
    | Annotated[Blend, tyro.conf.subcommand("blend")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed or damaged, 2 bad input."""
    arguments = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    # Unfinished files are removed on the way out.
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command: Any = tyro.cli(Command, prog="python -m shards", args=arguments, use_underscores=True)  # type: ignore[call-overload]
        local_folder(getattr(command, "out", None) or "")
        if isinstance(command, VideoSets):
            return _videos(command)
        if isinstance(command, ImageSets):
            return _images(command, arguments)
        if isinstance(command, IndexTars):
            return _index(command, arguments)
        if isinstance(command, Blend):
            return _blend(command, arguments)
        if isinstance(command, Inspect):
            return _inspect(command)
        return _verify(command) if isinstance(command, Verify) else _demo(command)
    except DfdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, former)


def _videos(options: VideoSets) -> int:
    # Reading videos and finding faces need libraries that the other commands do not.
    from shards import report
    from shards.mapping import in_processes
    from shards.prepare import failed
    from shards.videos import find, make_video_sets, making

    found = find(options)
    _show(report.before(found, all_missing=options.dry_run))
    if options.dry_run:
        return 0
    make = making(options, found)
    with show_progress("videos") as progress:
        made = make_video_sets(
            make,
            found,
            lambda: in_processes(make, partial(failed, dataset=make.dataset), options.workers),
            progress=progress,
        )
    _show(report.after(made))
    return 0


def _show(renderables: Sequence[Any]) -> None:
    console = Console()
    for each in renderables:
        console.print(each, soft_wrap=True, highlight=False, markup=False)


def _images(config: ImageSets, arguments: Sequence[str]) -> int:
    with show_progress("images") as progress:
        made = make_sets(config, written_by=_written_by(arguments), progress=progress)
    _print_table(made)
    failures = [failure for each in made for failure in each.manifest.failures]
    if failures:
        print(f"{len(failures)} images could not be used and are listed in the manifests:")
        for failure in failures[:SHOWN_FAILURES]:
            print(f"  {failure.video}: {failure.reason}")
    for each in made:
        print(each.path)
    if command := train_command({each.path: each.manifest for each in made}, config.name):
        print(f"Train on them:\n  {command}")
    return 0


def _index(options: IndexTars, arguments: Sequence[str]) -> int:
    with show_progress("tars") as progress:
        path = index_tars(options, written_by=_written_by(arguments), progress=progress)
    manifest = read_manifest(path)
    _print_table([MadeSet(path, manifest)])
    for line in losses([manifest]):
        print(line)
    print(path)
    return 0


def _blend(options: Blend, arguments: Sequence[str]) -> int:
    with show_progress("crops") as progress:
        print(blend_set(options, written_by=_written_by(arguments), progress=progress))
    return 0


def _inspect(options: Inspect) -> int:
    with show_progress("samples") as progress:
        inspection = inspect_set(options, progress=progress)
    Console().print(inspection)
    return 0


def _verify(config: Verify) -> int:
    if not config.sets:
        raise InputError("no set to verify; give the manifests (NAME.json)")
    code = 0
    for path in config.sets:
        try:
            problems = verify_set(path)
        except DfdetError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        print(f"{path}: {f'{len(problems)} problems' if problems else 'sound'}")
        for problem in problems:
            print(f"  {problem}")
        code = max(code, int(bool(problems)))
    if code == 0 and len(config.sets) > 1:
        check_no_leak(config.sets, persons=False)
    return code


def _demo(config: Demo) -> int:
    from shards.demo import build  # Rendering needs OpenCV, which the other commands do not.

    with show_progress("videos") as progress:
        paths = build(config.out, seed=config.seed, progress=progress)
    for path in paths.values():
        print(path)
    return 0


def _written_by(arguments: Sequence[str]) -> str:
    return f"dfdet {version()}: python -m shards {shlex.join(arguments)}"


def _print_table(made: Sequence[MadeSet]) -> None:
    table = Table("set", "real", "fake", "failed", "shards", "MiB")
    for each in made:
        manifest = each.manifest
        numbers = (manifest.by_label["real"], manifest.by_label["fake"], len(manifest.failures))
        mebibytes = sum(entry.bytes for entry in manifest.shards) / 2**20
        table.add_row(manifest.name, *map(str, numbers), str(len(manifest.shards)), f"{mebibytes:.1f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
