"""Whether nodes write to one storage. Runs there, by value: the standard library alone up here.

Each node writes a token of its own into ``<storage>/.doctor-<token>``, then looks for the others'.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

LOCK = "lock"
"""Held by the driver meanwhile."""
WAIT_S = 5.0
"""For another node's token: network file systems may show it late (seconds)."""
PAUSE_S = 0.2


def write(storage: str, token: str, me: str) -> dict[str, Any]:
    """Writes this node's token as checkpoints are written: synced, then renamed; and takes a lock.

    Returns:
        ``error`` (None where all is well), ``free`` bytes (None of a URL), ``made``: folders that were
        not there before.
    """
    made: list[str] = []
    free = None
    try:
        if _is_url(storage):
            _store(storage, token).put(me, _content(token, me))
        else:
            _write_local(_folder(storage, token), me, _content(token, me), made)
            free = shutil.disk_usage(storage).free
    except Exception as error:  # noqa: BLE001 - each storage has errors of its own; all are the answer
        return {"error": _brief(error), "free": free, "made": made}
    return {"error": None, "free": free, "made": made}


def _write_local(folder: Path, me: str, content: bytes, made: list[str]) -> None:
    for missing in [*reversed(folder.parents), folder]:
        try:
            missing.mkdir()
        except FileExistsError:
            continue
        except OSError:
            if missing.is_dir():
                continue  # as of a read-only root
            raise
        if missing != folder:
            made.append(str(missing))
    temporary = folder / f".{me}.tmp"
    with temporary.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / me)
    if (folder / me).read_bytes() != content:
        raise OSError(f"{folder}: gives back other bytes than were written")


def look(storage: str, token: str, others: list[str]) -> dict[str, Any]:
    """Looks for what the other nodes wrote.

    Returns:
        ``unseen``: nodes whose token is not there; ``lock``: whether the driver's lock is ``held`` as it
        should be, ``free``, an error, or None where its file is not there.
    """
    wanted, end = set(others), time.monotonic() + WAIT_S
    while True:
        wanted -= {name for name in wanted if _read(storage, token, name) == _content(token, name)}
        if not wanted or time.monotonic() > end:
            break
        time.sleep(PAUSE_S)
    return {"unseen": sorted(wanted), "lock": None if _is_url(storage) else _try_lock(storage, token)}


def _read(storage: str, token: str, name: str) -> bytes | None:
    try:
        if _is_url(storage):
            content: bytes | None = _store(storage, token).get(name)
            return content
        return (_folder(storage, token) / name).read_bytes()
    except Exception:  # noqa: BLE001 - not there, for whatever reason: the writer's own answer tells more
        return None


def _try_lock(storage: str, token: str) -> str | None:
    try:
        with (_folder(storage, token) / LOCK).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return "held"
    except OSError as error:
        return error.strerror or str(error)
    return "free"


def clean(storage: str, token: str, me: str, made: list[str]) -> dict[str, Any]:
    """Removes what :func:`write` left, as far as it can; again where another node must come first."""
    try:
        if _is_url(storage):
            _store(storage, token).remove(me)
        else:
            shutil.rmtree(_folder(storage, token), ignore_errors=True)
            for folder in reversed(made):
                with contextlib.suppress(FileNotFoundError):
                    Path(folder).rmdir()
    except Exception as error:  # noqa: BLE001 - a folder in use by now, or a storage that is away
        return {"left": _brief(error)}
    return {"left": None}


def _is_url(storage: str) -> bool:
    return "://" in storage


def _folder(storage: str, token: str) -> Path:
    return Path(storage) / f".doctor-{token}"


def _store(storage: str, token: str) -> Any:
    from dfdet.runs.objects import Store, check_writable

    return Store(f"{check_writable(storage)}/.doctor-{token}")


def _content(token: str, name: str) -> bytes:
    return f"{token} {name}\n".encode()


def _brief(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror
    return words if hasattr(error, "exit_code") else words or type(error).__name__
