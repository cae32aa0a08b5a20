"""Reads samples of a finished set one by one, through its index."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow.parquet as pq
from pydantic import ValidationError

from dfdet.errors import DamagedSampleError, ShardSetError
from dfdet.schema import Sample, index_schema
from shards.sets.manifest import read_manifest, tar_path

MAX_TEXT_BYTES = 4 << 20
"""A sample's JSON has some hundred bytes, with many candidates some thousand."""
_HEADERS_BYTES = 8 * tarfile.BLOCKSIZE
"""The header of a member, and its PAX header where the name is long."""


class Row(NamedTuple):
    """A sample as the index knows it; the fields are those of the index."""

    key: str
    ext: str
    shard: int
    offset: int
    size: int
    crc32: int
    label: int
    method: str
    group: str | None
    group_level: str
    video: str
    frame: int
    width: int
    height: int

    @property
    def dataset(self) -> str:
        """Dataset and variant, percent-encoded as in the key."""
        return self.key.partition("/")[0]


class SetReader:
    """An open set; any thread may read from it.

    Args:
        path: Manifest of the set.

    Raises:
        ShardSetError: The set is unfinished, or its index or a tar cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.rows = self._rows()
        self._files: list[int] = []

    def __enter__(self) -> Self:
        try:
            for entry in self.manifest.shards:
                self._files.append(os.open(tar_path(self.path.parent, entry), os.O_RDONLY))
        except OSError as error:
            self._close()
            raise ShardSetError(
                f"{error.filename} cannot be read ({error.strerror}), but {self.path.name} lists it; "
                "copy the whole set"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def image(self, row: Row, *, checked: bool = True) -> bytes:
        """The encoded image of a sample.

        Args:
            row: One of ``rows``.
            checked: Compare its checksum.

        Raises:
            DamagedSampleError: The tar ends before it, or the checksum is another.
        """
        data = self._read(row, row.offset, row.size)
        if checked and zlib.crc32(data) != row.crc32:
            raise self._damaged(row, "its image fails its checksum")
        return data

    def sample(self, row: Row) -> Sample:
        """What is known of a sample: the JSON member, which follows the image.

        Raises:
            DamagedSampleError: There is no JSON of that sample where it must be.
        """
        start = row.offset + row.size + -row.size % tarfile.BLOCKSIZE
        try:
            headers = os.pread(self._files[row.shard], _HEADERS_BYTES, start)
            with tarfile.open(fileobj=io.BytesIO(headers), mode="r:") as tar:
                member = tar.next()
            if member is None or member.name != f"{row.key}.json" or member.size > MAX_TEXT_BYTES:
                raise self._damaged(row, "its image is not followed by its JSON")
            return Sample.model_validate_json(self._read(row, start + member.offset_data, member.size))
        except (tarfile.TarError, ValidationError, OSError) as error:
            raise self._damaged(row, f"its JSON cannot be read ({type(error).__name__})") from error

    def _read(self, row: Row, offset: int, size: int) -> bytes:
        data = os.pread(self._files[row.shard], size, offset)
        if len(data) != size:
            raise self._damaged(row, "its tar ends too early")
        return data

    def _damaged(self, row: Row, problem: str) -> DamagedSampleError:
        file = self.manifest.shards[row.shard].file
        return DamagedSampleError(
            f"{file}: sample {row.key!r}: {problem}; python -m shards verify tells more"
        )

    def _rows(self) -> list[Row]:
        file = self.path.parent / self.manifest.index.file
        try:
            table = pq.read_table(file, columns=list(Row._fields))
            table = table.cast(index_schema().empty_table().select(Row._fields).schema)
        except (OSError, ValueError, KeyError) as error:  # Arrow's errors are among these.
            raise ShardSetError(f"{file}: index cannot be read ({error}); write the set again") from error
        rows = list(map(Row._make, zip(*(column.to_pylist() for column in table.columns), strict=True)))
        shards = len(self.manifest.shards)
        if any(not 0 <= row.shard < shards or min(row.offset, row.size) < 0 for row in rows):
            raise ShardSetError(f"{file}: rows point outside of the set's tars; write the set again")
        return rows

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())
