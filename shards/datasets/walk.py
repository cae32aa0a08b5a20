"""Reads folders and lists of a dataset as they are: partial, linked, oddly named, damaged.

Names that start with a dot are passed over: they are hidden, half downloaded, or macOS's ``._`` twins.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dfdet.errors import InputError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})
"""Of video files, in lower case."""
MAX_LIST_BYTES = 512 << 20
"""A list of labels is far smaller (DFDC's all metadata together: 20 MB)."""


def files(folder: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> list[Path]:
    """Files directly in a folder by suffix, in order of name; none where the folder is absent.

    A file is listed by its name alone: whether it can be read is found, and recorded, later.
    """
    return [Path(entry.path) for entry in _entries(folder) if _is_listed(entry, suffixes)]


def videos(folder: Path) -> list[Path]:
    """Video files directly in a folder, else in its ``videos``, where public code moves them."""
    return files(folder) or files(folder / "videos")


def folders(folder: Path) -> list[Path]:
    """Folders directly in a folder, linked ones too, in order of name."""
    return [Path(entry.path) for entry in _entries(folder) if _is_dir(entry)]


def tree(folder: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> Iterator[Path]:
    """Files below a folder by suffix, in order of path; linked folders too, but no loops."""
    yield from _tree(folder, suffixes, ())


def by_stem(paths: Collection[Path]) -> dict[str, Path]:
    """Files by name without suffix; with it where two files share the stem."""
    stems = Counter(path.stem for path in paths)
    return {text(path.stem if stems[path.stem] == 1 else path.name): path for path in paths}


def text(name: str) -> str:
    """A file name as text: what is no UTF-8 is escaped, since it would not fit into JSON."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: It is missing, too large, or no JSON.
    """
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}); download it again") from error


def read_csv(path: Path, required: Collection[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells (stripped, absent ones empty) of each row of a CSV file with a header.

    Raises:
        InputError: It is missing, no CSV, or lacks a required column.
    """
    try:
        reader = csv.DictReader(_read(path).decode("utf-8-sig").splitlines(keepends=True), strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if lacking := sorted(set(required) - set(names)):
            raise InputError(f"{path} lacks column {lacking[0]!r}; it has {', '.join(names) or 'none'}")
        return [
            (reader.line_num, {name: (row.get(name) or "").strip() for name in names if name})
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}); give a UTF-8 file with a header"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, stripped, without the empty ones.

    Raises:
        InputError: It is missing, too large, or no text.
    """
    return [line for _, line in read_numbered_lines(path)]


def read_numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Number (from 1) and text of the lines of a text file, stripped, without the empty ones.

    Raises:
        InputError: It is missing, too large, or no text.
    """
    try:
        lines = _read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file ({error}); download it again") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise InputError(f"{path} has over {MAX_LIST_BYTES >> 20} MiB; it is no list of a dataset")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check path and rights") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(shown, key=lambda entry: os.fsencode(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({error.strerror}); check its rights") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself.
        return False


def _is_listed(entry: os.DirEntry[str], suffixes: Collection[str]) -> bool:
    return Path(entry.name).suffix.lower() in suffixes and not _is_dir(entry)


def _tree(folder: Path, suffixes: Collection[str], above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _entries(folder):
        if _is_dir(entry):
            yield from _tree(Path(entry.path), suffixes, (*above, real))
        elif _is_listed(entry, suffixes):
            yield Path(entry.path)
