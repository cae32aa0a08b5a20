"""The files of a shard set: manifest, index and tars, in a local folder or behind URLs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from dfdet.data.cache import Cache
from dfdet.data.remote import ObjectError, Remote, check_url, is_url, join, redact
from dfdet.errors import ShardSetError
from dfdet.schema import Manifest, ShardEntry

BUILD = "build it with ray_jobs/shard.py or python -m shards"


class SetFiles:
    """Finds and reads the files of one set; its text is the manifest's path, or URL without a query.

    Args:
        manifest: Path or URL of the set's ``<name>.json``.
        cache: Where remote files are copied.

    Raises:
        ShardSetError: A URL that may not be read.
    """

    def __init__(self, manifest: str | Path, cache: Cache) -> None:
        text = str(manifest)
        text = text.removeprefix("file://") if text.startswith("file:///") else text
        self._url = check_url(text) if is_url(text) else None
        self._path, self._cache = Path(text).absolute(), cache

    def __str__(self) -> str:
        return redact(self._url) if self._url else str(self._path)

    @property
    def name(self) -> str:
        """Name of the manifest's file."""
        return str(self).rpartition("/")[2]

    def beside(self, file: str) -> str:
        """Path or URL of a file beside the manifest, to be shown."""
        return f"{str(self).rpartition('/')[0]}/{file}"

    def read_manifest(self) -> Manifest:
        """Reads the manifest.

        Raises:
            ShardSetError: It is missing (the set is unfinished, or the path wrong) or not valid.
            StorageError: It cannot be fetched.
        """
        try:
            return Manifest.model_validate_json(self._manifest_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise ShardSetError(
                f"{self}: no valid manifest ({where + ': ' if where else ''}{problem['msg']}); {BUILD} again"
            ) from error
        except (FileNotFoundError, ObjectError) as error:
            raise ShardSetError(
                f"{self}: no such manifest: the set is unfinished or the path wrong; {BUILD}"
            ) from error
        except OSError as error:
            raise ShardSetError(
                f"{self}: cannot be read ({error.strerror}); give the path of a .json"
            ) from error

    def _manifest_bytes(self) -> bytes:
        return self._cache.read_unknown(self._url) if self._url else self._path.read_bytes()

    def read_index(self, manifest: Manifest) -> bytes:
        """The index file, its checksum not yet compared where it is local.

        Raises:
            ShardSetError: It is missing, or remote and not what the manifest says.
            StorageError: It cannot be fetched.
        """
        entry = manifest.index
        if self._url:
            return self._cache.read(Remote(self._beside_url(entry.file), entry.bytes, entry.sha256))
        try:
            return (self._path.parent / entry.file).read_bytes()
        except OSError as error:
            raise ShardSetError(
                f"{self.beside(entry.file)}: index cannot be read ({error.strerror});"
                f" copy the whole set, or {BUILD} again"
            ) from error

    def shards(self, manifest: Manifest) -> list[Path | Remote]:
        """Where the tars lie; local ones are there and have the manifest's size.

        Raises:
            ShardSetError: A tar is missing, of another size, or where none may be.
        """
        places = [self._place(entry) for entry in manifest.shards]
        for place, entry in zip(places, manifest.shards, strict=True):
            if isinstance(place, Path):
                self._check_size(place, entry.bytes)
        return places

    def _beside_url(self, name: str) -> str:
        return join(str(self._url).rpartition("/")[0], name)

    def _place(self, entry: ShardEntry) -> Path | Remote:
        """A tar's place: its own URL or path, else beside the manifest."""
        where = (entry.url or entry.file).removeprefix("file://")
        if is_url(where):
            return Remote(check_url(where, query=True), entry.bytes, entry.sha256)
        if ".." in PurePosixPath(where).parts or (self._url and where.startswith("/")):
            raise ShardSetError(
                f"{self}: names {redact(where)!r} as a tar, which"
                + (" has '..' in it" if ".." in where else " is a local path behind a URL")
                + "; make the manifest again where the tars are"
            )
        if self._url:
            return Remote(self._beside_url(where), entry.bytes, entry.sha256)
        return self._path.parent / where

    def _check_size(self, tar: Path, expected: int) -> None:
        try:
            size = tar.stat().st_size
        except OSError as error:
            raise ShardSetError(
                f"{tar}: missing ({error.strerror}), but listed in {self.name}; copy the whole set,"
                f" or {BUILD} again"
            ) from error
        if size != expected:
            raise ShardSetError(
                f"{tar}: {size} bytes, but {self.name} says {expected}: truncated or of another set;"
                f" copy the set again, or {BUILD} again"
            )
