"""Reads manifests, and checks that sets of different splits share nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from dfdet.errors import ShardSetError
from dfdet.schema import Manifest, ShardEntry, Split


def read_manifest(path: Path) -> Manifest:
    """Reads and checks the manifest of a finished set.

    Raises:
        ShardSetError: The file is missing, or is no manifest of this format.
    """
    try:
        return Manifest.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"is no manifest ({'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']})"
    raise ShardSetError(f"{path} {reason}; give the <name>.json of a finished shard set, or write it again")


def tar_path(folder: Path, entry: ShardEntry) -> Path:
    """Where a tar of a set lies.

    Raises:
        ShardSetError: At a URL, which training reads through its cache and nothing else.
    """
    if entry.url is None:
        return folder / entry.file
    if "://" in entry.url:  # Not shown: it may be signed.
        raise ShardSetError(f"{entry.file} lies at a URL; fetch it and index it again to look at it here")
    return Path(entry.url)


def check_no_leak(manifests: Iterable[Path], *, persons: bool = True) -> None:
    """Checks that no group, identity or video lies in sets of different splits.

    Args:
        manifests: Manifests of the sets; those of equal split may share groups.
        persons: Whether identities count; official lists, as Celeb-DF's, may share persons.

    Raises:
        ShardSetError: Something is shared, with its name and the two sets.
    """
    owner: dict[tuple[str, str], tuple[Split, Path]] = {}
    for path in manifests:
        manifest = read_manifest(path)
        for what in sorted(_traces(path, manifest)):
            if what[0] == "identity" and not persons:
                continue
            split, other = owner.setdefault(what, (manifest.split, path))
            if split != manifest.split:
                raise ShardSetError(
                    f"{what[0]} {what[1]!r} is in {other} ({split}) and in {path} ({manifest.split}): scores "
                    "would be too good; write the sets again with each group in one split"
                )


def check_apart(path: Path, groups: Iterable[str | None], of: str) -> None:
    """Checks that a finished set holds none of the groups.

    Args:
        path: Manifest of the set.
        groups: Groups of a set that is to be written.
        of: What that set is, for the message.

    Raises:
        ShardSetError: A group is in both, with its name.
    """
    there = {name for kind, name in _traces(path, read_manifest(path)) if kind == "group"}
    if shared := sorted(there & set(groups)):
        raise ShardSetError(
            f"{len(shared)} groups, as {shared[0]!r}, are in {path} and in {of}: scores would be too good; "
            "give another --out or --name, or write all splits in one call"
        )


def _traces(path: Path, manifest: Manifest) -> set[tuple[str, str]]:
    """Kind and name of all that must not cross splits."""
    columns = ["group", "identity", "method", "video"]
    try:
        table = pq.read_table(Path(path).parent / manifest.index.file, columns=columns)
        table = table.cast(pa.schema([(name, pa.string()) for name in columns]))
    except (OSError, ValueError) as error:  # Arrow's errors are among these.
        raise ShardSetError(f"{path}: the set's index cannot be read ({error}); write it again") from error
    traces: set[tuple[str, str]] = set()
    for row in table.group_by(columns).aggregate([]).to_pylist():
        traces.add(("video", f"{manifest.dataset}/{row['method']}/{row['video']}"))
        family = manifest.dataset
        if row["group"] is not None:
            traces.add(("group", row["group"]))
            family = row["group"].partition("/")[0]
        if row["identity"] is not None:  # Persons are numbered anew in each dataset.
            traces.add(("identity", f"{family}/{row['identity']}"))
    return traces
