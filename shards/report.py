"""What people see of sharding: the census before it, the sets and the speed after it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dfdet.schema import Manifest
from shards.names import printable, readable
from shards.plan import SPLITS
from shards.sets.manifest import read_manifest

if TYPE_CHECKING:
    from shards.videos import Found, Made  # Imports the video library.

SHOWN = 5
"""Names shown of a long list."""
STAGES = ("read", "detect", "recompress", "align", "encode")


def before(found: Found, *, all_missing: bool = False) -> list[Table | str]:
    """What a run tells first, and a dry run tells only."""
    return [census(found), *remarks(found, shown=1 << 30 if all_missing else SHOWN)]


def after(made: Made) -> list[Table | str]:
    """What a run tells last, with the command that trains on its sets."""
    manifests = [read_manifest(path) for path in made.manifests]
    lines: list[Table | str] = [sets_made(manifests), *losses(manifests), speed(made)]
    lines += [str(path) for path in made.manifests]
    command = train_command(dict(zip(made.manifests, manifests, strict=True)), manifests[0].dataset)
    return lines + ([f"Train on them:\n  {command}"] if command else [])


def train_command(sets: Mapping[Path, Manifest], name: str) -> str | None:
    """The command that trains on the sets, calling those to score ``name``; None without a training set."""
    if not any(manifest.split == "train" for manifest in sets.values()):
        return None
    label = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    words = ["python", "ray_jobs/train.py", "gend"]
    for path, manifest in sets.items():
        words += [
            f"--data.{manifest.split}",
            str(path) if manifest.split == "train" else f"{label}={path}",
        ]
    return shlex.join(words)


def census(found: Found) -> Table:
    """Videos by split and method: on the disk, and named by lists but not there."""
    there = Counter((video.split, video.source) for video in found.selected.videos)
    missing = Counter((each.split, each.source) for each in found.selected.missing)
    paired = Counter(
        (video.split, video.source) for video in found.selected.videos if video.group_level == "exact"
    )
    table = Table("split", "method", "found", "missing", "real known", title=found.listing.dataset)
    order = sorted({*there, *missing}, key=lambda row: (SPLITS.index(row[0]), row[1] != "real", row[1]))
    for number, row in enumerate(order):
        last = number + 1 == len(order) or order[number + 1][0] != row[0]
        counts = (there[row], missing[row], paired[row] if row[1] != "real" else "-")
        table.add_row(row[0], row[1], *map(str, counts), end_section=last)
    total = sum(there.values()), sum(missing.values())
    table.add_row("all", "", *map(str, total), "")
    return table


def remarks(found: Found, shown: int = SHOWN) -> list[str]:
    """What a user should know: the notes, and what is missing by name."""
    lines = [f"note: {printable(note)}" for note in found.selected.notes]
    missing = found.selected.missing
    lines += [
        f"missing: {readable(each.source)}/{readable(each.video)} (named by {each.told_by})"
        for each in missing[:shown]
    ]
    if len(missing) > shown:
        lines.append(f"missing: and {len(missing) - shown} more")
    return lines


def sets_made(manifests: Sequence[Manifest]) -> Table:
    """The sets, with their samples, and the videos that were lost wholly, in part, or never there."""
    table = Table("set", "real", "fake", "failed", "partial", "missing", "shards", "MiB")
    for manifest in manifests:
        mebibytes = sum(entry.bytes for entry in manifest.shards) / 2**20
        counts = (
            manifest.by_label["real"],
            manifest.by_label["fake"],
            len(manifest.failures),
            len(manifest.shortfalls),
            len(manifest.missing),
            len(manifest.shards),
        )
        table.add_row(manifest.name, *map(str, counts), f"{mebibytes:.1f}")
    return table


def losses(manifests: Sequence[Manifest], shown: int = SHOWN) -> list[str]:
    """The first videos without a face, with their reasons."""
    failures = [failure for manifest in manifests for failure in manifest.failures]
    lines = [f"{readable(failure.video)} {failure.reason}" for failure in failures[:shown]]
    if len(failures) > shown:
        lines.append(f"and {len(failures) - shown} more, in the manifests")
    return lines


def speed(made: Made) -> str:
    """Rate of this run, and where the workers' time went."""
    if not made.videos:
        return "every set was finished before: nothing was done"
    total = sum(made.seconds.values()) or 1.0
    shares = ", ".join(
        f"{stage} {made.seconds[stage] / total:.0%}" for stage in STAGES if made.seconds[stage]
    )
    rate = made.frames / max(made.wall_s, 1e-9)
    before = f" ({made.reused} more were finished before)" if made.reused else ""
    return (
        f"{made.frames} frames of {made.videos} videos{before} in {made.wall_s:.1f} s, {rate:.1f} frames/s; "
        f"workers spent {total:.1f} s: {shares}"
    )
