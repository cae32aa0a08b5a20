"""The folder of an evaluation: whose it is, what it was begun with, and what is done already.

``evaluation.json`` holds the request with fingerprints of models and sets; ``parts/`` the scores of
slices that are done, until all are; then ``scores/<checkpoint>/<set>[@<corruption>].parquet``,
``report.html``, ``report.md`` and ``result.json``.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dfdet.errors import RunFolderError
from dfdet.evaluation.scorer import Part, Slice
from dfdet.runs.atomic import write_bytes_atomic, write_json_atomic
from dfdet.runs.ownership import Ownership

RECORD, RESULT, PARTS, SCORES = "evaluation.json", "result.json", "parts", "scores"


def default_out() -> str:
    """``evaluations/<UTC time>``."""
    return f"evaluations/{datetime.now(UTC):%Y%m%d-%H%M%S}"


class Folder:
    """An evaluation's folder, owned by this process until :meth:`release`.

    Args:
        path: Of the folder; made where it is not there.
        record: All that scores depend on (JSON).

    Raises:
        RunFolderError: It cannot be written, another process owns it, or it holds another evaluation.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        try:
            (path / PARTS).mkdir(parents=True, exist_ok=True)
            self._ownership = Ownership.take(path, "--out")
        except OSError as error:
            raise RunFolderError(
                f"--out {path}: cannot be written ({error.strerror or error}); give a writable folder"
            ) from error
        try:
            self._check(record)
            write_json_atomic(path / RECORD, record)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the folder back."""
        self._ownership.release()

    def _check(self, record: dict[str, Any]) -> None:
        try:
            old = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise RunFolderError(f"{self.path / RECORD}: damaged ({error}); give another --out") from error
        changed = [name for name in {**old, **record} if old.get(name) != record.get(name)]
        if changed:
            name = changed[0]
            raise RunFolderError(
                f"--out {self.path}: holds another evaluation ({name}: {json.dumps(old.get(name))} ->"
                f" {json.dumps(record.get(name))}); give another --out"
            )

    def _place(self, part: Slice) -> Path:
        clips = f"-{part.look.clip_frames}" if part.look.clip_frames else ""
        return self.path / PARTS / f"{part.set_key}-{part.look.crop_scale:g}{clips}-{part.low:08d}.npz"

    def keep(self, part: Slice, scores: Part) -> None:
        """Writes a slice's scores, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, scores=scores.scores, valid=scores.valid)
        write_bytes_atomic(self._place(part), buffer.getvalue())

    def kept(self, part: Slice) -> Part | None:
        """What :meth:`keep` wrote; None where there is nothing whole."""
        try:
            with np.load(self._place(part), allow_pickle=False) as saved:
                return Part(saved["scores"], saved["valid"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def remove_parts(self) -> None:
        """Removes what the files of scores hold by now."""
        shutil.rmtree(self.path / PARTS, ignore_errors=True)

    def scores(self, checkpoint: str, set_name: str, corruption: str | None = None) -> Path:
        """File of a checkpoint's scores of a set."""
        name = f"{set_name}@{corruption}" if corruption else set_name
        path = self.path / SCORES / checkpoint / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_result(self) -> dict[str, Any] | None:
        """The result; None where there is none yet."""
        try:
            found = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes ``result.json``."""
        write_json_atomic(self.path / RESULT, result)
