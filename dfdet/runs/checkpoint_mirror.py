"""Checkpoints of a run between a process's working copy and the URL that the run lies at.

The first rank gives what a kill must not lose in an order that leaves the run whole at the URL at any
moment: the metrics up to a checkpoint, the checkpoint's files (``checksums.json`` last), ``last.json``
and ``best.json``, and only then it removes what was pruned.

A checkpoint that replaces another one of its step is first put whole under ``.new-step_*``, which
readers prefer, for as long as the two are mixed.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfdet.runs.mirror import METRICS, Mirror, signature
from dfdet.runs.objects import tried

CHECKPOINTS, CHECKSUMS = "checkpoints", "checksums.json"
MARKS = ("last.json", "best.json")
STAGED = ".new-"
_STEP = re.compile(r"step_\d{8,}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(?:json|safetensors)")


class CheckpointMirror(Mirror):
    """A :class:`.Mirror` of checkpoints too; takes what that takes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._marks: dict[str, bytes | None] = dict.fromkeys(MARKS)
        self._steps: set[str] = set()
        """Checkpoints at the URL that this process knows: others it never removes."""
        self._staged: set[str] = set()
        """Those of them that lie under :data:`STAGED` too."""

    def bring_checkpoints(self) -> None:
        """Brings all whole checkpoints, for the process that goes on from them and writes the next ones.

        What an interrupted write has left is removed.
        """
        found = tried(lambda: self.store.list(CHECKPOINTS))
        steps = _by_step(found)
        for step in {step.removeprefix(STAGED) for step in steps}:
            self._bring_step(step, steps)
        for mark in MARKS:
            if mark in found:
                self.bring(f"{CHECKPOINTS}/{mark}")
                self._marks[mark] = (self.folder / CHECKPOINTS / mark).read_bytes()
        litter = [step for step, names in steps.items() if CHECKSUMS not in names]
        self._check_current()
        for step in litter:
            self.store.remove(*(f"{CHECKPOINTS}/{step}/{name}" for name in steps[step]))

    def bring_checkpoint(self, step: str) -> None:
        """Brings a checkpoint, unless it is here already; for a process that only reads.

        Raises:
            FileNotFoundError: There is none, or it is not whole.
        """
        if (self.folder / CHECKPOINTS / step).is_dir():
            return
        found = tried(lambda: self.store.list(f"{CHECKPOINTS}/{step}"))
        staged = tried(lambda: self.store.list(f"{CHECKPOINTS}/{STAGED}{step}"))
        steps = {step: _files(found), f"{STAGED}{step}": _files(staged)}
        if not self._bring_step(step, steps):
            raise FileNotFoundError(f"{self.store.url}/{CHECKPOINTS}/{step}: is not there")

    def _bring_step(self, step: str, steps: dict[str, list[str]]) -> bool:
        """Brings a checkpoint that is whole at the URL, whole; gives whether it is."""
        source = next((s for s in (STAGED + step, step) if CHECKSUMS in steps.get(s, [])), None)
        if source is None:
            return False
        target = self.folder / CHECKPOINTS / step
        temporary = target.with_name(f".tmp-{step}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name in steps[source]:
            tried(lambda name=name: self.store.get_file(f"{CHECKPOINTS}/{source}/{name}", temporary / name))  # type: ignore[misc]
        temporary.rename(target)
        self._steps.add(step)
        if source == step:
            self._sent |= {f"{CHECKPOINTS}/{step}/{p.name}": signature(p) for p in target.iterdir()}
        else:  # it is put again, in its place
            self._staged.add(step)
        return True

    def put_checkpoints(self) -> None:
        """Puts the checkpoints as they are here, and what a resume from them needs.

        Raises:
            SupersededError: Other workers have taken the place of these.
            OSError: The storage is away, full or denies access.
        """
        with self._lock:
            self._check_current()
            folder = self.folder / CHECKPOINTS
            # the marks before the list: what they name is then in it, and not pruned
            marks = {mark: _read(folder / mark) for mark in MARKS}
            steps = sorted(path.name for path in folder.glob("step_*") if _STEP.fullmatch(path.name))
            self._put(METRICS)
            for step in steps:
                with suppress(_PrunedError):
                    self._put_step(step)
            self._check_current()
            for mark, data in marks.items():
                self._put_mark(mark, data)
            for step in self._steps - set(steps):
                self._remove_step(step)

    def _put_step(self, step: str) -> None:
        """Puts a checkpoint's files; the earlier ones of its step are not mixed with them."""
        names = self._names(step)
        changed = [name for name in names if self._is_new(f"{CHECKPOINTS}/{step}/{name}")]
        if any(f"{CHECKPOINTS}/{step}/{name}" in self._sent for name in changed if name != CHECKSUMS):
            for name in names:
                self._put_file(step, name, to=STAGED + step)
            self._staged.add(step)
        for name in changed:
            self._put_file(step, name, to=step)
        self._steps.add(step)
        if step in self._staged:
            self.store.remove(*(f"{CHECKPOINTS}/{STAGED}{step}/{name}" for name in names[::-1]))
            self._staged.discard(step)

    def _names(self, step: str) -> list[str]:
        """A checkpoint's files, the list of their checksums last."""
        names = [path.name for path in (self.folder / CHECKPOINTS / step).glob("[!.]*")]
        return sorted((name for name in names if _FILE.fullmatch(name)), key=lambda name: name == CHECKSUMS)

    def _put_file(self, step: str, name: str, to: str) -> None:
        path = self.folder / CHECKPOINTS / step / name
        try:
            version = signature(path)
            self.store.put_file(f"{CHECKPOINTS}/{to}/{name}", path)
        except FileNotFoundError:
            if path.exists():
                raise  # there is no such bucket
            raise _PrunedError from None
        if to == step:
            self._sent[f"{CHECKPOINTS}/{step}/{name}"] = version

    def _put_mark(self, mark: str, data: bytes | None) -> None:
        if data == self._marks[mark]:
            return
        name = f"{CHECKPOINTS}/{mark}"
        if data is None:
            self.store.remove(name)
        else:
            self.store.put(name, data)
        self._marks[mark] = data

    def _remove_step(self, step: str) -> None:
        """Removes a checkpoint that was pruned; without its checksums it is none any more."""
        for prefix in (f"{CHECKPOINTS}/{step}", f"{CHECKPOINTS}/{STAGED}{step}"):
            if step in self._staged or STAGED not in prefix:
                self.store.remove(f"{prefix}/{CHECKSUMS}")
                self.store.remove(*(f"{prefix}/{name}" for name in self.store.list(prefix)))
        within = f"{CHECKPOINTS}/{step}/"
        self._sent = {name: sent for name, sent in self._sent.items() if not name.startswith(within)}
        self._steps.discard(step)
        self._staged.discard(step)


class _PrunedError(Exception):
    """A checkpoint was removed here while it was put."""


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _files(names: dict[str, int]) -> list[str]:
    return [name for name in names if _FILE.fullmatch(name)]


def _by_step(found: dict[str, int]) -> dict[str, list[str]]:
    """Files of checkpoints by the names of their folders; what is not of a checkpoint is left out."""
    steps: dict[str, list[str]] = {}
    for path in found:
        step, _, name = path.partition("/")
        if _STEP.fullmatch(step.removeprefix(STAGED)) and _FILE.fullmatch(name):
            steps.setdefault(step, []).append(name)
    return steps
