"""Index and manifest for WebDataset tars of others, which stay where they are, unchanged."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import tyro
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from dfdet.errors import InputError, ShardSetError
from dfdet.schema import Manifest, Split
from shards.foreign.facts import ContradictionError, LabelFrom
from shards.foreign.locations import Location, UnreadableError, locate
from shards.foreign.merge import Merged
from shards.foreign.scan import Rules, Scan, scan_tar
from shards.foreign.tars import TarError
from shards.ordered import in_order
from shards.progress import Progress
from shards.sets.files import TemporaryFolder, sync_folder, write_synced

_log = logging.getLogger(__name__)


class IndexTars(BaseModel):
    """Index WebDataset tars that lie anywhere, as they are, for training: nothing is copied."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tars: tyro.conf.Positional[tuple[str, ...]]
    """Tars: paths, or URLs (http, https, s3, gs, hf). Samples hold one jpg, jpeg, png or webp, and a
    json or cls with the label."""
    out: Path
    """Folder for the index and the manifest."""
    name: str = "tars"
    """Name of the set."""
    dataset: str | None = None
    """Name of the dataset in keys; else what the JSON says, or the set's name."""
    split: Split | None = None
    """Split of the set; else what the JSON says, if all say the same."""
    label_from: LabelFrom = "auto"
    """auto: JSON (label, is_fake, fake, class) and .cls, which must agree; json or cls alone; name: a
    folder real or fake within the tar. 0, false and real are real; 1, true and fake are fake."""
    methods: bool = True
    """Take methods from the JSON (method, else source); otherwise fakes are of method fake."""
    scale: float | None = Field(None, ge=1.0, le=4.0)
    """Margin of the images, as a multiple of the tight face; unknown: training uses them whole."""
    by_tar: bool = False
    """Put the tar's name before each sample's, where tars number their samples alike."""
    decode: bool = True
    """Decode every image as a proof (1 to 2 ms of a CPU for 256 px); else read headers only (.2 ms)."""
    on_damage: Literal["raise", "skip"] = "raise"
    """A tar that is damaged or out of reach: raise names all of them, skip leaves them out whole."""
    max_unusable: int = Field(100, ge=0)
    """Samples that may lack an image or label or not decode; they are listed in the manifest."""
    threads: int = Field(0, ge=0, le=256)
    """Tars read at once; 0: one for each CPU, at most 8."""
    overwrite: bool = False
    """Replace the index and manifest of that name; tars are never touched."""


def index_tars(options: IndexTars, *, written_by: str = "", progress: Progress | None = None) -> Path:
    """Indexes tars in one pass over each; returns the manifest's path.

    Args:
        options: Tars and how to read them.
        written_by: Program, version and arguments for the manifest.
        progress: Called after each tar.

    Raises:
        InputError: A path or URL that is not read, a tar named twice, samples that contradict
            themselves, too many that are unusable, mixed datasets, splits or crops.
        ShardSetError: A tar is damaged or out of reach, keys repeat, the folder cannot be written.
    """
    locations = _located(options.tars)
    path = _target(options)
    merged = Merged(dataset=options.dataset, name=options.name, by_tar=options.by_tar)
    damaged: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Unusable samples.
        for done, result in enumerate(_in_order(locations, options), 1):
            if isinstance(result, Scan):
                merged.add(result)
                _check_unusable(merged, options.max_unusable)
            else:
                _log.warning("%s", result)
                damaged.append(result)
            if progress:
                progress(done, len(locations))
    _check_damaged(damaged, len(locations), options.on_damage)
    if merged.ignored:
        _log.info("members passed over: %s", dict(merged.ignored.most_common(10)))
    _write(path, merged, options, written_by, damaged)
    return path


def _located(tars: Sequence[str]) -> list[Location]:
    if not tars:
        raise InputError("no tar to index; give paths or URLs of WebDataset tars")
    locations = [locate(text) for text in tars]
    url, count = Counter(location.url for location in locations).most_common(1)[0]
    if count > 1:
        raise InputError(f"{url} is named {count} times; name each tar once")
    return locations


def _target(options: IndexTars) -> Path:
    name = options.name
    if not name or not name.isprintable() or name != Path(name).name or name[0] == "." or "\\" in name:
        raise InputError(f"--name {name!r} must be a plain file name without a leading dot")
    path = options.out.absolute() / f"{name}.json"
    if not options.overwrite and (path.exists() or path.with_name(f"{name}.parquet").exists()):
        raise InputError(f"{path}, or its index, exists; give another --name or --out, or --overwrite")
    return path


def _in_order(locations: Sequence[Location], options: IndexTars) -> Iterator[Scan | str]:
    """Scans, or why a tar cannot be used, in the order of the tars; a bounded number in work."""
    threads = options.threads or min(8, os.cpu_count() or 1)
    scan = partial(_scanned, rules=Rules(options.label_from, options.methods, options.decode))
    return in_order(scan, locations, threads, ahead=threads)


def _scanned(location: Location, rules: Rules) -> Scan | str:
    try:
        scan = scan_tar(location, rules)
    except (TarError, UnreadableError) as error:
        return f"{location.url} {error}"
    except ContradictionError as error:
        raise InputError(
            f"{location.url}: {error}; correct the tar, or say what to believe (--label_from json, cls or"
            " name; --no_methods)"
        ) from error
    return scan if scan.found or scan.unusable else f"{location.url} has no sample (no image, json or cls)"


def _check_unusable(merged: Merged, most: int) -> None:
    if len(merged.unusable) > most:
        shown = "; ".join(merged.unusable[:3])
        raise InputError(
            f"over {most} samples are unusable, as {shown}; name where labels are (--label_from), leave the"
            " tars out, or raise --max_unusable"
        )


def _check_damaged(damaged: Sequence[str], count: int, on_damage: str) -> None:
    if damaged and on_damage == "raise":
        shown = "; ".join(damaged[:3])
        raise ShardSetError(
            f"{len(damaged)} of {count} tars cannot be used: {shown}; fetch or make them again, leave them"
            " out, or pass over them with --on_damage skip"
        )


def _write(path: Path, merged: Merged, options: IndexTars, written_by: str, left_out: Sequence[str]) -> None:
    """Everything is complete under other names before the manifest takes its place, last."""
    temporary = TemporaryFolder(path.parent, options.name)
    try:
        table = merged.table(path.parent)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        index = write_synced(temporary.path / f"{options.name}.parquet", buffer.getvalue())
        manifest: Manifest = merged.manifest(
            index, table, path.parent, split=options.split, scale=options.scale, left_out=left_out
        ).model_copy(update={"written_by": written_by})
        text = manifest.model_dump_json(indent=2) + "\n"
        write_synced(temporary.path / path.name, text.encode())
        path.unlink(missing_ok=True)
        (temporary.path / index.file).replace(path.parent / index.file)
        sync_folder(path.parent)
        (temporary.path / path.name).replace(path)
        sync_folder(path.parent)
    finally:
        temporary.remove()
