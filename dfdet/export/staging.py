"""A folder that is whole or absent, whatever is killed while it is written, and its checksums."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfdet.errors import RunFolderError
from dfdet.runs.atomic import sync_folder

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"


def check_out(out: Path) -> None:
    """Refuses a place where no new folder can be made.

    Raises:
        RunFolderError: It is there and not empty, or its folder cannot be written.
    """
    try:
        if out.is_dir() and any(out.iterdir()):
            raise RunFolderError(f"--out {out}: exists and is not empty; give another --out, or remove it")
        if out.exists() and not out.is_dir():
            raise NotADirectoryError("Not a directory")
        nearest = next(parent for parent in out.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise NotADirectoryError("Not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError("Permission denied")
    except OSError as error:
        raise _unwritable(out, error) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a hidden folder beside ``out`` to write into, which is ``out`` once the block has ended.

    An error within leaves nothing; what a kill leaves, the next one for the same ``out`` removes.

    Raises:
        RunFolderError: As :func:`check_out`, or another process is writing to ``out``.
    """
    check_out(out)
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        _remove_leftovers(out)
        folder.mkdir(parents=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        _lock(lock)
        yield folder
        _sync_tree(folder)
        os.rename(folder, out)  # noqa: PTH104 - onto an empty folder too
        sync_folder(out.absolute().parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's by now
            for parent in made:
                parent.rmdir()
        raise
    finally:
        os.close(lock)


def _unwritable(out: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"--out {out}: cannot be written ({error.strerror or error}); give a writable folder"
    )


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the folder; it is held until the descriptor is closed or its process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(out: Path) -> None:
    for leftover in out.absolute().parent.glob(f".{out.name}.{'[0-9a-f]' * 8}.tmp"):
        descriptor = os.open(leftover, os.O_RDONLY)
        try:
            if not _lock(descriptor):
                raise RunFolderError(
                    f"--out {out}: another export is writing to it; wait for it, or give another --out"
                )
            logger.info("removing %s of an export that was killed", leftover)
            shutil.rmtree(leftover)
        finally:
            os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


def files_of(folder: Path) -> list[str]:
    """Paths of all files, relative and sorted, with slashes; that of the checksums left out."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != SUMS)


def sha256(path: Path) -> str:
    """Checksum of a file (hexadecimal)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, known: dict[str, str]) -> None:
    """Writes ``SHA256SUMS`` over all files, as ``sha256sum --check`` reads it.

    Args:
        folder: Its files must not change any more.
        known: Checksums that were computed before, by path.
    """
    sums = {path: known.get(path) or sha256(folder / path) for path in files_of(folder)}
    (folder / SUMS).write_text(
        "".join(f"{value}  {path}\n" for path, value in sums.items()), encoding="utf-8"
    )


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by path, of ``SHA256SUMS``.

    Raises:
        OSError: There is no such file.
        ValueError: A line is none of ``sha256sum``'s.
    """
    found = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        value, gap, path = line.partition("  ")
        if not gap or len(value) != 64:
            raise ValueError(f"{SUMS}: {line!r} is no checksum")
        found[path] = value
    return found
