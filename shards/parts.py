"""Finished parts of sets in the making: what a killed run leaves, and the next one takes over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dfdet.errors import ShardSetError
from dfdet.schema import CropRecipe, Failure, Split
from shards.prepare import Prepared
from shards.sets.files import LockedFolder, write_synced
from shards.sets.manifest import read_manifest
from shards.sets.write import ShardWriter

_ONE_TAR = 1 << 62


class _Empty(BaseModel):
    """A part of which no video gave a face."""

    model_config = ConfigDict(frozen=True)

    failures: tuple[Failure, ...]


class PartStore:
    """Parts of one set, each a small shard set of one tar, in the hidden folder ``.<name>.parts``.

    One process at a time holds the folder. A part appears whole or not at all.

    Raises:
        ShardSetError: The folder cannot be written, or another process makes the set.
    """

    def __init__(self, folder: Path, name: str, *, dataset: str, split: Split, crop: CropRecipe) -> None:
        self._locked = LockedFolder(folder, name, "parts")
        self._dataset, self._split, self._crop = dataset, split, crop

    def has(self, part: str) -> bool:
        """Whether the part is there, with all its bytes."""
        if self._empty(part) is not None:
            return True
        try:
            manifest = read_manifest(self._manifest(part))
        except ShardSetError:
            return False
        files = (*manifest.shards, manifest.index)
        return all(_bytes(self._locked.path / entry.file) == entry.bytes for entry in files)

    def write(self, part: str, units: Iterable[Sequence[Prepared]]) -> None:
        """Writes a part unit by unit; an exception on the way leaves no trace of it."""
        with ShardWriter(
            self._locked.path,
            part,
            dataset=self._dataset,
            split=self._split,
            crop=self._crop,
            max_shard_bytes=_ONE_TAR,
        ) as writer:
            failures: list[Failure] = []
            samples = 0
            for unit in units:
                failures += [each.failure for each in unit if each.failure is not None]
                for each in unit:
                    if each.shortfall is not None:
                        writer.add_shortfall(each.shortfall)
                items = [item for each in unit for item in each.items]
                if items:
                    writer.add_group(
                        sorted(items, key=lambda item: (item[0].frame, item[0].source, item[0].video))
                    )
                samples += len(items)
            for failure in failures:
                writer.add_failure(failure)
            if not samples:
                self._write_empty(part, failures)
                writer.cancel()

    def take_over(self, parts: Iterable[str], writer: ShardWriter) -> None:
        """Hands all parts to the set's writer, in their order."""
        for part in parts:
            empty = self._empty(part)
            if empty is None:
                writer.adopt(self._manifest(part))
            else:
                for failure in empty.failures:
                    writer.add_failure(failure)

    def failures(self, part: str) -> int:
        """Videos without a face in a finished part."""
        empty = self._empty(part)
        return len((empty or read_manifest(self._manifest(part))).failures)

    def release(self) -> None:
        """Lets others take the folder; its parts stay."""
        self._locked.release()

    def remove(self) -> None:
        """Removes the folder with all parts, once the set is published."""
        self._locked.remove()

    def _manifest(self, part: str) -> Path:
        return self._locked.path / f"{part}.json"

    def _empty(self, part: str) -> _Empty | None:
        try:
            return _Empty.model_validate_json((self._locked.path / f"{part}.empty").read_bytes())
        except (OSError, ValidationError):
            return None

    def _write_empty(self, part: str, failures: Sequence[Failure]) -> None:
        path = self._locked.path / f"{part}.empty"
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        write_synced(unfinished, _Empty(failures=tuple(failures)).model_dump_json().encode())
        unfinished.replace(path)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
